"""Compute the values of mediators' cells; cells that patch the same run share one sweep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from interpret.stats import Floats
from interpret.sweep import Cell
from interpret.tracing.inputs import TraceInputs
from interpret.tracing.mediators import ACTS_ON, MEDIATORS

RunCells = Callable[[Tensor, Tensor, Sequence[Cell]], tuple[Tensor, Tensor, Tensor]]
"""A function (base runs, donor runs, C cells) -> probabilities of the answer in the patched runs of the cells, [C, S],
in the base runs, [S], and in the donor runs, [S] or [1]."""


@dataclass(frozen=True)
class CellValues:
    """Probabilities of the answer, for one mediator."""

    values: Floats
    """[C, S], in the patched run of each cell, for each noise sample."""
    high: float
    """In the clean run."""
    lows: Floats
    """[S], in the corrupted runs."""


def values_by_mediator(
    inputs: TraceInputs, cells: Mapping[str, Sequence[Cell]], run_cells: RunCells
) -> dict[str, CellValues]:
    """Run the cells of several mediators.

    Args:
        inputs: the clean and the corrupted runs.
        cells: the cells of each mediator.
        run_cells: runs or estimates cells; called once for each kind of run (``ACTS_ON``) that the mediators patch.

    Returns:
        The values of each mediator, in the order of ``cells``.
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
