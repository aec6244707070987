"""Compute the values of mediators' cells; cells that patch the same run share one sweep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from interpret.stats import Floats
from interpret.sweep import Cell
from interpret.sweep.cells import ATTENTION
from interpret.tracing.inputs import TraceInputs
from interpret.tracing.mediators import ACTS_ON, mediator_named

RunCells = Callable[[Tensor, Tensor, Sequence[Cell]], tuple[Tensor, Tensor, Tensor]]
"""A function (base runs, donor runs, C cells) -> M metrics of the answer: in the patched runs of the cells, [M, C, S],
in the base runs, [M, S], and in the donor runs, [M, S] or [M, 1]."""


@dataclass(frozen=True)
class CellValues:
    """M metrics of the answer, for one mediator."""

    values: Floats
    """[M, C, S], in the patched run of each cell, for each noise sample; S is 1 if the patched runs have no noise."""
    highs: Floats
    """[M], in the clean run."""
    lows: Floats
    """[M, S], in the corrupted runs."""


def values_by_mediator(
    inputs: TraceInputs, cells: Mapping[str, Sequence[Cell]], run_cells: RunCells
) -> dict[str, CellValues]:
    """Run the cells of several mediators.

    Args:
        inputs: the clean and the corrupted runs.
        cells: the cells of each mediator.
        run_cells: runs or estimates cells; called once for each kind of run that the mediators patch: corrupted runs,
            clean runs with corrupted values, and the clean run without noise, of which attention is knocked out.

    Returns:
        The values of each mediator, in the order of ``cells``.
    """
    rows = {name: mediator_named(name) for name in cells}
    knocked_out = {name: of_one for name, of_one in cells.items() if rows[name].site == ATTENTION}
    found: dict[str, CellValues] = {}
    for run in ACTS_ON:
        of_run = {name: cells[name] for name in cells if rows[name].acts_on == run and name not in knocked_out}
        if not of_run:
            continue
        parts, of_base, of_donor = _run_together(of_run, *inputs.base_and_donor(run), run_cells)
        clean, corrupted = (of_donor, of_base) if run == "corrupted" else (of_base, of_donor)
        highs, lows = clean[:, 0].numpy(), corrupted.numpy()
        found |= {name: CellValues(part.numpy(), highs, lows) for name, part in parts.items()}
    if knocked_out:
        parts, clean, _ = _run_together(knocked_out, inputs.clean, inputs.clean, run_cells)
        lows = next(iter(found.values())).lows if found else run_cells(inputs.corrupted, inputs.clean, [])[1].numpy()
        found |= {name: CellValues(part.numpy(), clean[:, 0].numpy(), lows) for name, part in parts.items()}
    return {name: found[name] for name in cells}


def _run_together(
    cells: Mapping[str, Sequence[Cell]], base: Tensor, donor: Tensor, run_cells: RunCells
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Run the cells of several mediators at once; return the values of each, and those of the base and the donor."""
    values, of_base, of_donor = run_cells(base, donor, [cell for of_one in cells.values() for cell in of_one])
    parts = values.split([len(of_one) for of_one in cells.values()], dim=1)
    return dict(zip(cells, parts, strict=True)), of_base, of_donor
