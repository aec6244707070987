"""``interpret compare``: how much two traces of the same facts agree, from their stored rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from interpret.cli.work import out
from interpret.errors import InputError
from interpret.records import TraceCell
from interpret.storage import run_folder
from interpret.tracing.approximate import rank_correlation
from interpret.tracing.tables import Floats, TraceGrid, trace_grids


def compare_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret trace', say an exact one.")],
    other: Annotated[Path, typer.Argument(help="Another over the same facts, say with --method approximate.")],
) -> None:
    """Compare two traces fact by fact: the rank correlation of their indirect effects. No model is needed.

    interpret compare runs/exact runs/approximate
    """
    found = list(_pairs(run, other))
    table = Table("restored", "facts", "rank correlation, mean", "lowest", "highest", "same peak")
    for mediator in dict.fromkeys(one.mediator for one, _ in found):
        pairs = [(one.effects, two.effects) for one, two in found if one.mediator == mediator]
        ranks = np.array([rank_correlation(*pair) for pair in pairs])
        same = sum(_peak(one) == _peak(two) for one, two in pairs)
        numbers = [f"{value:+.2f}" for value in (np.nanmean(ranks), np.nanmin(ranks), np.nanmax(ranks))]
        table.add_row(mediator, str(len(pairs)), *numbers, f"{same} of {len(pairs)}")
    out.print(table)
    out.print("rank correlation: Spearman's, over all tokens and layers of a fact")


def _peak(effects: Floats) -> int:
    return int(effects.argmax())


def _pairs(run: Path, other: Path) -> Iterator[tuple[TraceGrid, TraceGrid]]:
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
