"""Means of effects over prompts, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interpret.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Average:
    """A mean over prompts with a confidence interval; a number, or an array of the shape of one prompt's effects."""

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]
    """How many prompts each mean is over."""


def average(
    effects: Sequence[ArrayLike] | Floats, *, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> Average:
    """Average effects over prompts: ATE from total effects, AIE from indirect effects (ROME, section 2.1).

    The interval is a bootstrap's: prompts are drawn with replacement, and the percentiles of the means taken.

    Args:
        effects: [prompts, ...], one effect (or array of them) a prompt; NaN where a prompt has none.
        confidence: share of the means inside the interval.
        draws: how often prompts are drawn.
        seed: of the draws.

    Raises:
        InputError: if there is no prompt.

    >>> average([0.1, 0.3]).mean.round(2), average([0.1, 0.3]).n
    (np.float64(0.2), np.int64(2))
    """
    values = np.array(effects, dtype=np.float64)
    if not len(values):
        raise InputError("there are no effects to average")
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    random = np.random.default_rng(seed)
    # How often each prompt is in each draw: [draws, prompts].
    times = random.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws).astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = np.tensordot(times, filled, axes=1) / np.tensordot(times, known.astype(np.float64), axes=1)
        mean = filled.sum(axis=0) / known.sum(axis=0)
    low, high = _percentiles(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Average(mean, low, high, known.sum(axis=0))


def _percentiles(means: Floats, shares: Sequence[float]) -> Floats:
    """Return percentiles over the first axis that leave NaN out; NaN where there is nothing else."""
    empty = np.isnan(means).all(axis=0)
    found = np.nanquantile(np.where(empty, 0.0, means), shares, axis=0)
    return np.where(empty, np.nan, found)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation of two grids of effects; equal values share their mean rank.

    Args:
        first: any shape, such as the ``indirect_effects`` of an exact trace.
        second: the same shape.

    Returns:
        From -1 to 1; NaN below two cells, or where one of the grids is constant.

    Raises:
        InputError: if the shapes differ.

    >>> rank_correlation([0.1, 0.2, 0.9], [3, 5, 4])
    0.5
    """
    if np.shape(first) != np.shape(second):
        raise InputError(f"the grids have shapes {np.shape(first)} and {np.shape(second)}; ranks need the same cells")
    x, y = (_ranks(grid) for grid in (first, second))
    spread = x.std() * y.std() if x.size > 1 else 0.0
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else float("nan")


def _ranks(grid: ArrayLike) -> Floats:
    """Return the rank of each cell, from 1; equal ones have the mean of theirs."""
    _, which, counts = np.unique(np.ravel(grid), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]
