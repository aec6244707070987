"""Causal tracing without all its runs: first-order estimates of the same grids, and the cells worth an exact look.

Attribution patching (Nanda 2023; Syed, Rager & Conmy 2023, arXiv:2310.10348); the formula stands in
``sweep.attribution``. An estimate says how the answer begins to move as a state is restored, not where it ends: the
runs are far apart and the model is not linear, most of all for the hidden states of early layers. So every grid says
which of its cells are exact, and ``rank_correlation`` how far the order of the estimates can be trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.stats import Floats, rank_correlation
from interpret.sweep import Metric, first_order, sweep
from interpret.tracing.inputs import TraceInputs, TraceSettings, trace_inputs
from interpret.tracing.mediators import Mediator, check_mediators, grid_of
from interpret.tracing.result import TraceResult, trace_result

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Screening:
    """A trace of which only the cells that seemed to matter are exact."""

    result: TraceResult
    """Exact where ``result.exact`` says so, estimates elsewhere."""
    approximate: TraceResult
    """The estimates of all cells, by which those were chosen."""
    rank_correlation: float
    """Of the estimated and the exact indirect effects, over the cells that have both. These are the largest
    estimates, so it is mostly lower than over the whole grid; NaN below two cells."""


def approximate_trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    mediators: Sequence[Mediator] = ("hidden", "attn_severed", "mlp_severed"),
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
) -> dict[Mediator, TraceResult]:
    """Estimate the traces of one prompt by several mediators, from derivatives at the corrupted runs.

    The corrupted runs, the noise and the answer are those ``trace_mediators`` takes for the same arguments. ``low``
    and ``high`` are exact; ``scores`` are the corrupted probabilities plus the estimated effects.

    Args:
        model: as in ``trace``, like all that is not told here. No gradient is left on it.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        mediators: which, in the order of the result.
        settings: how to corrupt and what to read.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.

    Returns:
        Results whose ``exact`` is False everywhere.

    Raises:
        InputError: as ``trace`` does.
        UnsupportedModelError: as ``trace`` does.

    Example:
        >>> result = approximate_trace(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> result["hidden"].method  # doctest: +SKIP
        'approximate'
    """
    settings = settings or TraceSettings()
    check_mediators(mediators)
    inputs = trace_inputs(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
    )
    return _approximate(model, tokenizer, inputs, mediators, settings)


def screen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    share: float = 0.1,
    top: int | None = None,
    mediators: Sequence[Mediator] = ("hidden", "attn_severed", "mlp_severed"),
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
) -> dict[Mediator, Screening]:
    """Estimate the traces of one prompt, and trace exactly the cells with the largest estimated effects.

    Args:
        model: as in ``trace``, like all that is not told here. No gradient is left on it.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        share: of each mediator's cells, above 0 and up to 1, rounded up: those whose indirect effect, upwards or
            downwards, is estimated to be largest.
        top: how many cells of each mediator, in place of a share.
        mediators: which, in the order of the result.
        settings: how to corrupt and what to read.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.

    Raises:
        InputError: as ``trace`` does, or if ``share`` or ``top`` choose nothing.
        UnsupportedModelError: as ``trace`` does.

    Example:
        >>> found = screen(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> found["hidden"].result.exact.mean()  # doctest: +SKIP
    """
    settings = settings or TraceSettings()
    check_mediators(mediators)
    _check_amount(share, top)
    inputs = trace_inputs(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
    )
    estimates = _approximate(model, tokenizer, inputs, mediators, settings)
    chosen = {name: _largest(result.indirect_effects, share, top) for name, result in estimates.items()}
    return _traced(model, inputs, estimates, chosen, settings)


def _approximate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: TraceInputs,
    mediators: Sequence[Mediator],
    settings: TraceSettings,
) -> dict[Mediator, TraceResult]:
    grids = {name: grid_of(model, name, inputs, settings.window) for name in mediators}
    found = first_order(
        model,
        inputs.corrupted,
        inputs.clean,
        [cell for cells in grids.values() for cell in cells],
        _answer(inputs),
        memory=settings.memory,
    )
    parts = (found.base + found.effects).split([len(cells) for cells in grids.values()])
    high, lows = found.donor.item(), found.base.numpy()
    return {
        name: trace_result(tokenizer, inputs, name, part.numpy(), high, lows, exact=False)
        for name, part in zip(grids, parts, strict=True)
    }


def _answer(inputs: TraceInputs) -> Metric:
    return Metric("probability", inputs.answer_ids)


def _check_amount(share: float, top: int | None) -> None:
    if top is not None and top < 1:
        raise InputError(f"top is {top}; trace at least 1 cell exactly")
    if top is None and not 0 < share <= 1:
        raise InputError(f"share is {share}; give a part of the cells, above 0 and up to 1")


def _largest(effects: Floats, share: float, top: int | None) -> Bools:
    """Return which effects, [T, L], are the largest in size; of equal ones the first."""
    count = ceil(share * effects.size) if top is None else min(top, effects.size)
    mask = np.zeros(effects.size, dtype=bool)
    mask[np.argsort(-np.abs(effects), axis=None, kind="stable")[:count]] = True
    return mask.reshape(effects.shape)


def _traced(
    model: PreTrainedModel,
    inputs: TraceInputs,
    estimates: Mapping[Mediator, TraceResult],
    chosen: Mapping[Mediator, Bools],
    settings: TraceSettings,
) -> dict[Mediator, Screening]:
    """Trace the chosen cells, and put them in the place of their estimates."""
    cells = [
        [cell for cell, wanted in zip(grid_of(model, name, inputs, settings.window), mask.flat, strict=True) if wanted]
        for name, mask in chosen.items()
    ]
    found = sweep(
        model,
        inputs.corrupted,
        inputs.clean,
        [cell for some in cells for cell in some],
        {"answer": _answer(inputs)},
        memory=settings.memory,
    )
    parts = found.values["answer"].split([len(some) for some in cells])
    return {
        name: _screening(estimates[name], mask, part.numpy())
        for (name, mask), part in zip(chosen.items(), parts, strict=True)
    }


def _screening(estimate: TraceResult, mask: Bools, values: Floats) -> Screening:
    """Replace the estimates of the cells of a mask by their values, [cells, S]."""
    sample_scores = estimate.sample_scores.copy()
    sample_scores[:, mask] = values.T
    result = replace(estimate, scores=sample_scores.mean(axis=0), sample_scores=sample_scores, exact=mask)
    estimated, exact = (of.indirect_effects[mask] for of in (estimate, result))
    return Screening(result, estimate, rank_correlation(estimated, exact))
