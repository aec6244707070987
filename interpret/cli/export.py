"""``interpret export``: a trace run as the files Knowledge-Tracing leaves, for scripts that read those."""

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
    facts: Annotated[Path, typer.Option(help="The file of facts it traced: places in the lists are its rows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("results"),
    name: Annotated[str, typer.Option(help="What their names begin with.")] = "model",
) -> None:
    """Write a trace as Knowledge-Tracing's .pt files: lists over all rows, and which of them were traced.

    interpret export runs/trace --facts examples/facts.json
    """
    import torch

    from interpret.tracing.knowledge_tracing import result_lists, row_names
    from interpret.tracing.tables import trace_grids

    grids = {(grid.name, grid.mediator): grid for grid in trace_grids(run_folder.read_table(run, TraceCell))}
    rows = row_names(facts)
    if missing := next((fact for fact, _ in grids if fact not in rows), None):
        raise InputError(f"{facts} has no fact {missing!r}, which the run traced; give the file it was made from")
    make_folder(output)
    contents = result_lists(grids, rows)
    for file, values in contents.items():
        written = io.BytesIO()
        torch.save(values, written)
        disk.replace_whole(output / f"{name}-{file}.pt", written.getvalue())
    say(f"{output}: {len(contents)} files, {len(contents['valid_index'])} of {len(rows)} rows traced")
