"""``interpret export``: a trace run as the files Knowledge-Tracing leaves, for scripts that read those."""

import io
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from interpret.cli.work import make_folder, say
from interpret.errors import InputError
from interpret.facts.files import load_facts
from interpret.records import TraceCell
from interpret.storage import disk, run_folder
from interpret.tracing.tables import TraceGrid, trace_grids

FILES = {"hidden": "ie_wo_sever", "attn_severed": "ie_w_attn_sever", "mlp_severed": "ie_w_mlp_sever"}
"""Mediator -> what Knowledge-Tracing calls the file of its effects."""


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret trace'.")],
    facts: Annotated[Path, typer.Option(help="The file of facts it traced: places in the lists are its rows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("results"),
    name: Annotated[str, typer.Option(help="What their names begin with.")] = "model",
) -> None:
    """Write a trace as Knowledge-Tracing's .pt files: lists over all rows, and which of them were traced.

    interpret export runs/trace --facts examples/facts.json
    """
    grids = {(grid.name, grid.mediator): grid for grid in trace_grids(run_folder.read_table(run, TraceCell))}
    rows = _rows_of(facts)
    if missing := next((fact for fact, _ in grids if fact not in rows), None):
        raise InputError(f"{facts} has no fact {missing!r}, which the run traced; give the file it was made from")
    make_folder(output)
    contents = _contents(grids, rows)
    for file, values in contents.items():
        written = io.BytesIO()
        torch.save(values, written)
        disk.replace_whole(output / f"{name}-{file}.pt", written.getvalue())
    say(f"{output}: {len(contents)} files, {len(contents['valid_index'])} of {len(rows)} rows traced")


def _rows_of(path: Path) -> list[str]:
    """Return the name of each row's fact, in the file's order."""
    file = load_facts(path)
    names = [fact.name for fact in file.facts]
    for bad in file.bad:  # in their order, so that each lands on its own row
        names.insert(bad.index, "")
    return names


def _contents(grids: dict[tuple[str, str], TraceGrid], rows: list[str]) -> dict[str, list[Any]]:
    """Return the lists by the files' names; rows that were not traced hold 0, or a tensor of no tokens."""
    by_fact = {name: grid for (name, _), grid in grids.items()}
    contents: dict[str, list[Any]] = {
        "te": [by_fact[name].total_effect if name in by_fact else 0.0 for name in rows],
        "valid_index": [index for index, name in enumerate(rows) if name in by_fact],
    }
    n_layers = next(iter(grids.values())).effects.shape[1]
    for mediator, file in FILES.items():
        if any(one == mediator for _, one in grids):
            # Nothing is severed after the last layer, which Knowledge-Tracing therefore leaves out.
            layers = n_layers if mediator == "hidden" else n_layers - 1
            empty = torch.zeros(layers, 0)
            contents[file] = [
                torch.tensor(grids[name, mediator].effects.T[:layers].copy()) if (name, mediator) in grids else empty
                for name in rows
            ]
    return contents
