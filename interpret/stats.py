"""Means of effects over prompts with bootstrap confidence intervals, and rank correlation.

Numbers that are not finite (NaN or infinity) are left out, see ``interpret.finite``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interpret.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Average:
    """A mean over prompts with its confidence interval: scalars, or arrays of the shape of one prompt's effects."""

    mean: Floats
    low: Floats
    """Lower bound of the interval; NaN for fewer than two prompts, whose mean has no interval."""
    high: Floats
    """Upper bound of the interval, likewise."""
    n: NDArray[np.int64]
    """Number of prompts in each mean: those whose effect is finite."""


def average(
    effects: Sequence[ArrayLike] | Floats, *, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> Average:
    """Average effects over prompts: ATE from total effects, AIE from indirect effects (ROME, section 2.1).

    The interval is a percentile bootstrap over prompts.

    Args:
        effects: [prompts, ...], one effect or array of effects per prompt; NaN where a prompt has no value. Values
            that are not finite are left out.
        confidence: confidence level of the interval.
        draws: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Raises:
        InputError: if there is no prompt.

    >>> average([0.1, 0.3]).mean.round(2), average([0.1, 0.3]).n
    (np.float64(0.2), np.int64(2))
    """
    values = np.array(effects, dtype=np.float64)
    if not len(values):
        raise InputError("there are no effects to average")
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    random = np.random.default_rng(seed)
    # How often each prompt occurs in each bootstrap sample: [draws, prompts].
    times = random.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws).astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = np.tensordot(times, filled, axes=1) / np.tensordot(times, known.astype(np.float64), axes=1)
        mean = filled.sum(axis=0) / known.sum(axis=0)
    bounds = _percentiles(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    n = known.sum(axis=0)
    low, high = np.where(n > 1, bounds, np.nan)
    return Average(mean, low, high, n)


def _percentiles(means: Floats, shares: Sequence[float]) -> Floats:
    """Return quantiles over the first axis that ignore NaN; NaN where all values are NaN."""
    empty = np.isnan(means).all(axis=0)
    found = np.nanquantile(np.where(empty, 0.0, means), shares, axis=0)
    return np.where(empty, np.nan, found)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation of two arrays of effects; ties get their mean rank.

    Args:
        first: array of any shape, such as the ``indirect_effects`` of an exact trace.
        second: array of the same shape.

    Returns:
        The correlation, -1 to 1, over the places where both values are finite; NaN for fewer than two such places, or
        if an array is constant there.

    Raises:
        InputError: if the shapes differ.

    >>> rank_correlation([0.1, 0.2, 0.9], [3, 5, 4])
    0.5
    """
    if np.shape(first) != np.shape(second):
        raise InputError(f"the arrays have shapes {np.shape(first)} and {np.shape(second)}; expected equal shapes")
    both = np.isfinite(first) & np.isfinite(second)
    x, y = (_ranks(np.asarray(grid)[both]) for grid in (first, second))
    spread = x.std() * y.std() if x.size > 1 else 0.0
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else float("nan")


def _ranks(grid: ArrayLike) -> Floats:
    """Return the rank of each value, from 1; ties get their mean rank."""
    _, which, counts = np.unique(np.ravel(grid), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def finite_mean(values: Floats) -> Floats:
    """Return the mean over the first axis of the values that are finite; NaN where there is none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)


def largest(values: ArrayLike) -> int:
    """Return the flat index of the largest finite value, the first one among equals; 0 if none is finite."""
    return int(np.where(np.isfinite(values), values, -np.inf).argmax())
