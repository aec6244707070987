"""``interpret export``: write a trace as result files of Knowledge-Tracing, for scripts that read these."""

import io
from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import make_folder, say
from interpret.errors import InputError
from interpret.records import TraceCell
from interpret.storage import disk, run_folder


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret trace'.")],
    facts: Annotated[Path, typer.Option(help="The facts file of this run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("results"),
    name: Annotated[str, typer.Option(help="Prefix of the file names, as in NAME-valid_index.pt.")] = "model",
) -> None:
    """Write a trace as .pt files in the format of Knowledge-Tracing: lists over all rows of the facts file.

    interpret export runs/trace --facts examples/facts.json

    Entry i of a list belongs to row i; rows that were not traced have 0 or an empty tensor. The list valid_index
    contains the indices of the traced rows. No model is needed.
    """
    import torch

    from interpret.tracing.knowledge_tracing import result_lists, row_names
    from interpret.tracing.tables import trace_grids

    grids = {(grid.name, grid.mediator): grid for grid in trace_grids(run_folder.read_table(run, TraceCell))}
    rows = row_names(facts)
    if missing := next((fact for fact, _ in grids if fact not in rows), None):
        raise InputError(f"{facts} has no fact {missing!r}, which the run traced; give the facts file of the run")
    make_folder(output)
    contents = result_lists(grids, rows)
    for file, values in contents.items():
        written = io.BytesIO()
        torch.save(values, written)
        disk.replace_whole(output / f"{name}-{file}.pt", written.getvalue())
    say(f"{output}: {len(contents)} files, {len(contents['valid_index'])} of {len(rows)} rows traced")
