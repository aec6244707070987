"""First-order estimates of causal traces, and screening: exact values only for the cells with large estimates.

Attribution patching (Nanda 2023; Syed, Rager & Conmy 2023, arXiv:2310.10348), or RelP (arXiv:2508.21258), which has
relevance in place of gradients; ``interpret.sweep.estimates`` has the formula. An estimate extrapolates the slope of
the answer's probability at the start of a restoration. It can be far from the exact effect, because the runs are far
apart and the model is not linear, most of all for hidden states of early layers. Therefore every grid marks its exact
cells, and ``rank_correlation`` shows how reliable the order of the estimates is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.records import APPROXIMATE, EstimateMethod
from interpret.stats import Floats, rank_correlation
from interpret.sweep import Cell, first_order
from interpret.sweep.base_and_donor import first_difference
from interpret.tracing.cell_values import values_by_mediator
from interpret.tracing.exact import cells_of, run_exactly
from interpret.tracing.inputs import TraceInputs, TraceSettings
from interpret.tracing.result import TraceResult, trace_result

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Screening:
    """A trace in which only the cells with the largest estimated effects are exact."""

    result: TraceResult
    """Exact values in the cells marked by ``result.exact``, estimates elsewhere. Cells before the first token
    at which the runs differ are marked too: no state there has an effect."""
    approximate: TraceResult
    """The estimates of all cells, from which the exact cells were chosen."""
    rank_correlation: float
    """Rank correlation of estimated and exact indirect effects, over the cells that were run, with finite values of
    both. These cells have the largest estimates, so it is usually lower than over the whole grid. NaN for fewer than
    two cells."""


def estimate_traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: TraceInputs,
    mediators: Sequence[str],
    settings: TraceSettings,
    method: EstimateMethod,
) -> dict[str, TraceResult]:
    """Estimate all cells of some mediators from derivatives or relevance at the runs that the mediators patch.

    ``low`` and ``high`` are exact; ``scores`` are the probabilities in these runs plus the estimated effects. No
    gradients remain on the model.
    """
    cells = cells_of(model, mediators, inputs, settings.window)
    found = values_by_mediator(inputs, cells, partial(_estimate, model, inputs, settings, method))
    return {
        name: trace_result(tokenizer, inputs, name, values, settings.window, estimate=method)
        for name, values in found.items()
    }


def _estimate(
    model: PreTrainedModel,
    inputs: TraceInputs,
    settings: TraceSettings,
    method: EstimateMethod,
    base: Tensor,
    donor: Tensor,
    cells: Sequence[Cell],
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate every cell; a ``RunCells`` if the first four arguments are bound."""
    found = first_order(model, base, donor, cells, inputs.metric, method=method, memory=settings.memory)
    return (found.base + found.effects)[None], found.base[None], found.donor[None]


def screen_traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: TraceInputs,
    mediators: Sequence[str],
    settings: TraceSettings,
    *,
    share: float = 0.1,
    top: int | None = None,
) -> dict[str, Screening]:
    """Estimate all cells of some mediators, and run those with the largest estimated effects.

    Before the first token at which the clean and the corrupted runs differ, usually that of the subject, the effects
    are 0. These cells are exact, and do not count.
    """
    estimates = estimate_traces(model, tokenizer, inputs, mediators, settings, APPROXIMATE)
    start = first_difference(inputs.corrupted, inputs.clean)
    chosen = {name: _chosen(result.indirect_effects, start, share, top) for name, result in estimates.items()}
    every = cells_of(model, list(chosen), inputs, settings.window)
    cells = {
        name: [cell for cell, wanted in zip(every[name], mask.flat, strict=True) if wanted]
        for name, mask in chosen.items()
    }
    found = values_by_mediator(inputs, cells, partial(run_exactly, model, inputs, settings))
    return {name: _screening(estimates[name], mask, found[name].values[0], start) for name, mask in chosen.items()}


def check_amount(share: float, top: int | None) -> None:
    """Check the number of cells to run.

    Raises:
        InputError: if ``top`` is below 1, or ``share`` is not above 0 and at most 1.
    """
    if top is not None and top < 1:
        raise InputError(f"top is {top}; give at least 1 cell to run")
    if top is None and not 0 < share <= 1:
        raise InputError(f"share is {share}; give a share of the cells above 0 and at most 1")


def _chosen(effects: Floats, start: int, share: float, top: int | None) -> Bools:
    """Return a mask of the effects, [T, L], with the largest ones from the token ``start`` on."""
    count = ceil(share * effects[start:].size) if top is None else top
    return np.concatenate([np.zeros_like(effects[:start], dtype=bool), _largest(effects[start:], count)])


def _largest(effects: Floats, count: int) -> Bools:
    """Return a mask of the effects, [T, L], with the largest absolute values; the first ones among equal effects.

    Effects that are not finite come last.
    """
    sizes = np.where(np.isfinite(effects), np.abs(effects), -1.0)
    mask = np.zeros(effects.size, dtype=bool)
    mask[np.argsort(-sizes, axis=None, kind="stable")[:count]] = True
    return mask.reshape(effects.shape)


def _screening(estimate: TraceResult, mask: Bools, values: Floats, start: int) -> Screening:
    """Replace the estimates of the cells in a mask by exact values, [cells, S]; those before ``start`` are exact."""
    sample_scores = estimate.sample_scores.copy()
    sample_scores[:, mask] = values.T
    is_exact = mask.copy()
    is_exact[:start] = True
    result = replace(estimate, scores=sample_scores.mean(axis=0), sample_scores=sample_scores, exact=is_exact)
    estimated, exact = (of.indirect_effects[mask] for of in (estimate, result))
    return Screening(result, estimate, rank_correlation(estimated, exact))
