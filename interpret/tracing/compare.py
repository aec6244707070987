"""Match the stored grids of two trace runs of the same facts, to compare them."""

from collections.abc import Iterator
from pathlib import Path

from interpret.errors import InputError
from interpret.records import TraceCell
from interpret.stats import Floats, largest
from interpret.storage import run_folder
from interpret.tracing.tables import TraceGrid, trace_grids


def peak_of(effects: Floats) -> int:
    """Return the flat index, ``token * L + layer``, of the largest finite effect of a grid, [T, L]."""
    return largest(effects)


def grid_pairs(run: Path, other: Path) -> Iterator[tuple[TraceGrid, TraceGrid]]:
    """Yield the two grids of each fact, mediator and metric that both runs have.

    Raises:
        InputError: if a run has no rows, the runs have no fact, mediator and metric in common, or a fact differs
            between them.
    """
    grids = [
        {(grid.name, grid.mediator, grid.metric): grid for grid in trace_grids(run_folder.read_rows(folder, TraceCell))}
        for folder in (run, other)
    ]
    common = [key for key in grids[0] if key in grids[1]]
    if not common:
        raise InputError(f"{run} and {other} have no fact, mediator and metric in common")
    for key in common:
        one, two = grids[0][key], grids[1][key]
        if (one.prompt, one.effects.shape) != (two.prompt, two.effects.shape):
            raise InputError(f"fact {key[0]!r} differs between {run} and {other}; compare traces of the same facts")
        yield one, two
