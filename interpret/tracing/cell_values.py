"""Mediators' cells -> values: those that act on the same run go through the model in one sweep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from interpret.stats import Floats
from interpret.sweep import Cell
from interpret.tracing.inputs import TraceInputs
from interpret.tracing.mediators import ACTS_ON, MEDIATORS

RunCells = Callable[[Tensor, Tensor, Sequence[Cell]], tuple[Tensor, Tensor, Tensor]]
"""(base runs, donor runs, C cells) -> probabilities of the answer: of the cells, [C, S], of the base runs, [S], and of
the donor runs, [S] or [1]."""


@dataclass(frozen=True)
class CellValues:
    """Probabilities of the answer, for one mediator."""

    values: Floats
    """[C, S], of its cells, for each noise sample."""
    high: float
    """Of the clean run."""
    lows: Floats
    """[S], of the corrupted runs."""


def values_by_mediator(
    inputs: TraceInputs, cells: Mapping[str, Sequence[Cell]], run_cells: RunCells
) -> dict[str, CellValues]:
    """Run the cells of several mediators.

    Args:
        inputs: the clean and the corrupted runs.
        cells: by mediator.
        run_cells: the engine; it is called once for each run that mediators act on.

    Returns:
        The values by mediator, in the order of ``cells``.
    """
    found: dict[str, CellValues] = {}
    for run in ACTS_ON:
        names = [name for name in cells if MEDIATORS[name].acts_on == run]
        if not names:
            continue
        together = [cell for name in names for cell in cells[name]]
        values, of_base, of_donor = run_cells(*inputs.base_and_donor(run), together)
        clean, corrupted = (of_donor, of_base) if run == "corrupted" else (of_base, of_donor)
        parts = values.split([len(cells[name]) for name in names])
        for name, part in zip(names, parts, strict=True):
            found[name] = CellValues(part.numpy(), clean[0].item(), corrupted.numpy())
    return {name: found[name] for name in cells}
