"""Do two samples of numbers differ in their means: Welch's t-test (1947), or permutation tests of the difference.

p-values of drawn permutations follow Phipson and Smyth (2010), the effect size Hedges (1981).
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
    """What a test of two samples came to. The null hypothesis is that their means are equal."""

    method: Method
    null_mean: float
    alternative_mean: float
    statistic: float
    """Welch's t, or, of permutation tests, the difference of the means; above 0 where the alternative's is larger."""
    degrees_of_freedom: float | None
    """Of t (Welch and Satterthwaite); None of permutation tests, and where no sample varies."""
    p_value: float
    """Two-sided."""
    alpha: float
    rejected: bool
    """Whether the null hypothesis is rejected: p_value is at most alpha."""
    hedges_g: float
    """Difference of the means by the pooled standard deviation, without its bias in small samples."""
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
    """Test whether two samples have different means: independent ones, or pairs.

    Args:
        null: at least two numbers, measured where the effect is said to be absent.
        alternative: at least two, measured where it is said to be present.
        alpha: how probable it may be to reject a null hypothesis that is true, between 0 and 1.
        method: ``"welch"``, which takes the means for normally distributed, with any variances; or
            ``"permutation"``, which takes the numbers for exchangeable: all ways to deal them out are counted where
            there are at most ``n_permutations``, else as many are drawn, and p is ``(1 + as extreme) / (1 + drawn)``.
            ``"paired"`` is for numbers that belong together one by one, such as of a sentence and its changed copy:
            a permutation test of the signs of their differences. The other two take all numbers for independent.
        n_permutations: of the two permutation tests.
        seed: of their draws.

    Returns:
        The test. Where all numbers are one, p is 1 and the statistic 0.

    Raises:
        InputError: for fewer than two numbers, pairs of samples of different sizes, a number that is not finite, an
            alpha or a method that does not exist, or Welch's t of two samples that do not vary and differ.

    >>> test = hypothesis_test([0.1, 0.2, 0.3], [0.9, 1.1, 1.0])
    >>> test.rejected, round(test.statistic, 2), round(test.p_value, 5)
    (True, 9.8, 0.00061)
    """
    if method not in get_args(Method):
        raise InputError(unknown("method", method, get_args(Method)))
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}: give a probability between 0 and 1, such as 0.05")
    if n_permutations < 1:
        raise InputError(f"n_permutations is {n_permutations}: draw at least one")
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
    """Call a function with each sample's number, from 0, before its other arguments, and return what it gives.

    Raises:
        InputError: naming function and sample, if that is no number.
    """
    values = []
    for sample in range(n_samples):
        value = function(sample, *args, **kwargs)
        try:
            values.append(float(value))
        except (TypeError, ValueError):
            raise InputError(
                f"{function.__name__}({sample}) gave {type(value).__name__} {value!r:.80}: a tested function gives "
                "one number a sample"
            ) from None
    return values


def _checked(name: str, sample: Sequence[float]) -> Floats:
    """Return a sample as an array, [n]."""
    if len(sample) < 2:
        raise InputError(f"{name} has {len(sample)} number{'s'[: len(sample) != 1]}: a test needs at least 2 of each")
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
            f"all null samples are {before[0]} and all alternative samples {after[0]}: Welch's t needs a sample that "
            'varies; use method="permutation", and see whether the samples differ in anything at all'
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
    """Tell whether numbers differ; the variance of equal ones may be the rounding of their mean."""
    return bool(np.ptp(sample) > 0)


def _paired_p(before: Floats, after: Floats, n_permutations: int, seed: int) -> float:
    """Return how often differences within pairs, each with a sign by chance, have as large a mean, up or down."""
    if len(before) != len(after):
        raise InputError(f"null has {len(before)} numbers, alternative {len(after)}: pairs need as many of each")
    differences = after - before
    # Signs know no unit; the sums are in float32, which has no room for very small or large numbers.
    scaled = torch.from_numpy(differences / (np.abs(differences).max() or 1))[:, None]
    return permutation_p_values(scaled, n_permutations=n_permutations, seed=seed).item()


def _permutation_p(before: Floats, after: Floats, n_permutations: int, seed: int) -> float:
    """Return how often numbers dealt out by chance differ in their means at least as much, in either direction."""
    pooled, n = np.concatenate([after, before]), len(after)
    # Of fixed sizes, the means differ more the farther the sum of one sample is from its expectation.
    centred = pooled - pooled.mean()
    observed = abs(centred[:n].sum()) - 1e-12 * np.abs(centred).sum()  # sums that are equal differ by rounding
    if math.comb(len(pooled), n) <= n_permutations:
        sums = np.array([centred[list(chosen)].sum() for chosen in combinations(range(len(pooled)), n)])
        return float((np.abs(sums) >= observed).mean())
    chance = np.random.default_rng(seed)
    sums = np.array([chance.permutation(centred)[:n].sum() for _ in range(n_permutations)])
    return float((1 + (np.abs(sums) >= observed).sum()) / (1 + n_permutations))
