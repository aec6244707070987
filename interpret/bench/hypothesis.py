"""Tests of whether two samples differ in their means: Welch's t-test (1947) and permutation tests.

The p-values of random permutations follow Phipson and Smyth (2010), the effect size Hedges (1981).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import mpmath  # type: ignore[import-untyped]
import numpy as np
import torch

from interpret.errors import InputError, unknown
from interpret.probing.effects import effect_sizes, permutation_p_values
from interpret.stats import Floats

Method = Literal["welch", "permutation", "paired"]


@dataclass(frozen=True)
class HypothesisTest:
    """The result of a test of two samples. The null hypothesis is that their means are equal."""

    method: Method
    null_mean: float
    alternative_mean: float
    statistic: float
    """Welch's t, or, in permutation tests, the difference of the means; above 0 if the alternative's mean is larger."""
    degrees_of_freedom: float | None
    """Of Welch's t (Welch-Satterthwaite equation); None for permutation tests, and if both samples are constant."""
    p_value: float
    """Two-sided."""
    alpha: float
    rejected: bool
    """Whether the null hypothesis is rejected: p_value is at most alpha."""
    hedges_g: float
    """Difference of the means divided by the pooled standard deviation, with Hedges' small-sample correction."""
    null_n: int
    alternative_n: int


def hypothesis_test(
    null: Sequence[float],
    alternative: Sequence[float],
    *,
    alpha: float = 0.05,
    method: Method = "welch",
    n_permutations: int = 10_000,
    seed: int = 0,
) -> HypothesisTest:
    """Test whether two samples, independent or paired, have different means.

    Args:
        null: at least two numbers, measured in the condition without the effect.
        alternative: at least two numbers, measured in the condition with the hypothesised effect.
        alpha: significance level, between 0 and 1: the probability of rejecting a null hypothesis that is true.
        method: ``"welch"`` assumes normally distributed means, with possibly different variances. ``"permutation"``
            assumes exchangeable numbers. If there are at most ``n_permutations`` ways to split the pooled numbers
            into the two samples, all are counted; otherwise ``n_permutations`` random splits are drawn, and p is
            ``(1 + as extreme) / (1 + drawn)``. ``"paired"`` is for matched numbers, such as those of a sentence and
            its edited copy: a sign-flip permutation test of their differences. The first two methods assume
            independent samples.
        n_permutations: number of permutations, for ``"permutation"`` and ``"paired"``.
        seed: random seed of the permutations.

    Returns:
        The result of the test. If all numbers are equal, p is 1 and the statistic is 0.

    Raises:
        InputError: for fewer than two numbers, paired samples of different sizes, a number that is not finite, an
            invalid alpha or method, or Welch's t-test of two constant samples with different values.

    >>> test = hypothesis_test([0.1, 0.2, 0.3], [0.9, 1.1, 1.0])
    >>> test.rejected, round(test.statistic, 2), round(test.p_value, 5)
    (True, 9.8, 0.00061)
    """
    if method not in get_args(Method):
        raise InputError(unknown("method", method, get_args(Method)))
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}: give a probability between 0 and 1, such as 0.05")
    if n_permutations < 1:
        raise InputError(f"n_permutations is {n_permutations}; expected at least 1")
    before, after = _checked("null", null), _checked("alternative", alternative)
    if method == "welch":
        statistic, freedom, p_value = _welch(before, after)
    else:
        statistic, freedom = float(after.mean() - before.mean()), None
        test = _paired_p if method == "paired" else _permutation_p
        p_value = test(before, after, n_permutations, seed)
    return HypothesisTest(
        method=method,
        null_mean=float(before.mean()),
        alternative_mean=float(after.mean()),
        statistic=statistic,
        degrees_of_freedom=freedom,
        p_value=p_value,
        alpha=alpha,
        rejected=p_value <= alpha,
        hedges_g=_hedges_g(before, after),
        null_n=len(before),
        alternative_n=len(after),
    )


def sampled(function: Callable[..., Any], n_samples: int, *args: Any, **kwargs: Any) -> list[float]:
    """Call a function once per sample, with the sample index as its first argument, and return the numbers.

    Raises:
        InputError: if a returned value is not a number; the message names the function and the sample.
    """
    values = []
    for sample in range(n_samples):
        value = function(sample, *args, **kwargs)
        try:
            values.append(float(value))
        except (TypeError, ValueError):
            raise InputError(
                f"{function.__name__}({sample}) returned {type(value).__name__} {value!r:.80}: a tested function "
                "has to return one number per sample"
            ) from None
    return values


def _checked(name: str, sample: Sequence[float]) -> Floats:
    """Return a sample as an array, [n]."""
    if len(sample) < 2:
        raise InputError(
            f"{name} has {len(sample)} number{'s'[: len(sample) != 1]}: a test needs at least 2 per sample"
        )
    for index, value in enumerate(sample):
        if not math.isfinite(value):
            raise InputError(f"{name}[{index}] is {float(value)}: a test needs finite numbers")
    return np.array([float(value) for value in sample])


def _welch(before: Floats, after: Floats) -> tuple[float, float | None, float]:
    """Return Welch's t, its degrees of freedom, and the two-sided p-value."""
    if not _varies(before) and not _varies(after):
        if before[0] == after[0]:
            return 0.0, None, 1.0
        raise InputError(
            f"all null samples are {before[0]} and all alternative samples {after[0]}: Welch's t-test needs a sample "
            'that varies; use method="permutation", and check whether the samples should be constant'
        )
    errors = [float(sample.var(ddof=1)) / len(sample) for sample in (before, after)]
    t = float(after.mean() - before.mean()) / math.sqrt(sum(errors))
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(sample) - 1) for error, sample in zip(errors, (before, after), strict=True)
    )
    # P(|T| >= |t|) is the regularised incomplete beta function at df / (df + t^2).
    p_value = float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))
    return t, freedom, p_value


def _hedges_g(before: Floats, after: Floats) -> float:
    if not _varies(before) and not _varies(after):
        return 0.0 if before[0] == after[0] else math.copysign(math.inf, after[0] - before[0])
    _, g = effect_sizes(*(torch.from_numpy(sample)[:, None] for sample in (after, before)))
    return g.item()


def _varies(sample: Floats) -> bool:
    """Tell whether a sample varies; due to rounding of the mean, equal numbers may have a variance above 0."""
    return bool(np.ptp(sample) > 0)


def _paired_p(before: Floats, after: Floats, n_permutations: int, seed: int) -> float:
    """Return the two-sided p-value of a sign-flip test of the differences within pairs."""
    if len(before) != len(after):
        raise InputError(f"null has {len(before)} numbers, alternative {len(after)}: a paired test needs equally many")
    differences = after - before
    # Sums are in float32: scale very small or large differences into its range. The p-value does not change.
    scaled = torch.from_numpy(differences / (np.abs(differences).max() or 1))[:, None]
    return permutation_p_values(scaled, n_permutations=n_permutations, seed=seed).item()


def _permutation_p(before: Floats, after: Floats, n_permutations: int, seed: int) -> float:
    """Return the two-sided p-value: the share of splits whose means differ at least as much as the observed ones."""
    pooled, n = np.concatenate([after, before]), len(after)
    # As the sizes are fixed, the distance of one sample's sum from its expectation orders the splits like the
    # difference of their means.
    centred = pooled - pooled.mean()
    observed = abs(centred[:n].sum()) - 1e-12 * np.abs(centred).sum()  # equal sums may differ by rounding
    if math.comb(len(pooled), n) <= n_permutations:
        sums = np.array([centred[list(chosen)].sum() for chosen in combinations(range(len(pooled)), n)])
        return float((np.abs(sums) >= observed).mean())
    chance = np.random.default_rng(seed)
    sums = np.array([chance.permutation(centred)[:n].sum() for _ in range(n_permutations)])
    return float((1 + (np.abs(sums) >= observed).sum()) / (1 + n_permutations))
