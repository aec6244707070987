"""``interpret export``: write a run for a spreadsheet, for Knowledge-Tracing's scripts, or for ``interpret selfie``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import make_folder, say
from interpret.errors import InputError
from interpret.records import TraceCell
from interpret.storage import disk, run_folder


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder: of any command with --spreadsheet, else of 'trace'.")],
    facts: Annotated[Path | None, typer.Option(help="The facts file of a run of 'interpret trace'.")] = None,
    spreadsheet: Annotated[
        Path | None, typer.Option(help="Instead of --facts: CSV file to write, in which no cell is a formula.")
    ] = None,
    peaks: Annotated[
        Path | None,
        typer.Option(help="Instead of --facts: prompt file (.json) to write, with the states at the peaks of a trace."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("results"),
    name: Annotated[
        str | None,
        typer.Option(
            help="Prefix of the file names, as in NAME-valid_index.pt. [default: the name of the model in the run]"
        ),
    ] = None,
) -> None:
    """Write a run for other programs: any table for a spreadsheet, a trace for Knowledge-Tracing or interpret selfie.

    interpret export runs/trace --facts examples/facts.json

    With --facts, it writes .pt files in the format of Knowledge-Tracing: lists over all rows of the facts file. Entry
    i of a list belongs to row i; rows that were not traced have 0 or an empty tensor. The list valid_index contains
    the indices of the traced rows. With --spreadsheet table.csv, it writes the table of any run, in which texts that
    a spreadsheet would take for a formula (=1+1) get an apostrophe. With --peaks peaks.json, it
    writes a prompt file that names the hidden states with the largest effects of each fact, which 'interpret selfie
    --examples peaks.json' then reads. No model is needed.
    """
    if sum(one is not None for one in (facts, spreadsheet, peaks)) != 1:
        raise InputError(
            "give one of the three: --facts for files of Knowledge-Tracing, --spreadsheet for a CSV file, --peaks for "
            "a prompt file"
        )
    if spreadsheet is not None:
        disk.replace_whole(spreadsheet, run_folder.read_run(run).to_spreadsheet())
        say(f"{spreadsheet}: open it in a spreadsheet program; texts that begin like a formula have an apostrophe")
    elif peaks is not None:
        _write_peaks(run, peaks)
    elif facts is not None:
        _write_lists(run, facts, output, name)


def _write_peaks(run: Path, file: Path) -> None:
    """Write the prompt file of the states at the peaks of a trace."""
    from interpret.tracing.peak_states import peak_prompts

    prompts = peak_prompts(run)
    disk.replace_whole(file, json.dumps({"examples": prompts}, ensure_ascii=False, indent=1).encode() + b"\n")
    count = sum(len(one["states"]) for one in prompts)
    say(f"{file}: {count} states of {len(prompts)} facts; interpret selfie --examples {file}")


def _write_lists(run: Path, facts: Path, output: Path, name: str | None) -> None:
    """Write the files of Knowledge-Tracing."""
    from interpret.facts.files import load_facts
    from interpret.tracing.knowledge_tracing import row_names, write_lists
    from interpret.tracing.tables import trace_grids

    grids = trace_grids(run_folder.read_rows(run, TraceCell))
    rows = row_names(load_facts(facts))
    if missing := next((grid.name for grid in grids if grid.name not in rows), None):
        raise InputError(f"{facts} has no fact {missing!r}, which the run traced; give the facts file of the run")
    make_folder(output)
    recorded = run_folder.read_manifest(run)["circumstances"].get("name", "model")
    count = write_lists(grids, rows, output, name or str(recorded))
    say(f"{output}: {count} files, {len({grid.name for grid in grids})} of {len(rows)} rows traced")
