"""How much two traces of the same facts agree, from their stored rows."""

from collections.abc import Iterator
from pathlib import Path

from interpret.errors import InputError
from interpret.records import TraceCell
from interpret.stats import Floats
from interpret.storage import run_folder
from interpret.tracing.tables import TraceGrid, trace_grids


def peak_of(effects: Floats) -> int:
    """Return the index of the largest effect of a grid, [T, L], counted token by token."""
    return int(effects.argmax())


def grid_pairs(run: Path, other: Path) -> Iterator[tuple[TraceGrid, TraceGrid]]:
    """Yield the grids that both runs have of one fact and mediator."""
    grids = [
        {(grid.name, grid.mediator): grid for grid in trace_grids(run_folder.read_table(folder, TraceCell))}
        for folder in (run, other)
    ]
    common = [key for key in grids[0] if key in grids[1]]
    if not common:
        raise InputError(f"{run} and {other} have no fact and mediator in common")
    for key in common:
        one, two = grids[0][key], grids[1][key]
        if (one.prompt, one.effects.shape) != (two.prompt, two.effects.shape):
            raise InputError(f"fact {key[0]!r} is not the same in {run} and {other}; compare traces of one file")
        yield one, two
