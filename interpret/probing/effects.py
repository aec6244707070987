"""How much, and how surely, pairs differ: Hedges' g, sign-flip permutations, false discovery rates.

Sources: Hedges (1981) for the effect size, Phipson and Smyth (2010) for p-values of drawn permutations, Benjamini
and Hochberg (1995) for many tests at once. Shapes: N pairs, F features that are tested side by side.
"""

import torch
from torch import Tensor

from interpret.errors import InputError

_CHUNK = 1 << 19
"""Numbers held at a time while permutations are counted: 2 MiB, which stay near the processor."""


def effect_sizes(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return Cohen's d and Hedges' g of ``left`` over ``right``, [F] float64 each.

    d is the difference of the means by the pooled standard deviation (each set's own with n - 1); g is d times
    ``1 - 3 / (4 * (N + M) - 9)``, which takes out d's bias in small sets. Where neither set varies both are 0 for equal
    means, and else infinite.

    Args:
        left: [N, F], N at least 2.
        right: [M, F], M at least 2.
    """
    left, right = left.double(), right.double()
    n, m = len(left), len(right)
    difference = left.mean(dim=0) - right.mean(dim=0)
    pooled = (((n - 1) * left.var(dim=0) + (m - 1) * right.var(dim=0)) / (n + m - 2)).sqrt()
    d = torch.where(difference == 0, 0.0, difference / pooled)
    return d, d * (1 - 3 / (4 * (n + m) - 9))


def permutation_p_values(differences: Tensor, *, n_permutations: int, seed: int) -> Tensor:
    """Return the two-sided p-value of the mean of each feature's differences within pairs, [F] float64.

    If truth made no difference, each pair's difference could as well have the other sign. All ``2 ** N`` ways are
    counted where ``n_permutations`` is as large; otherwise that many are drawn, and p is
    ``(1 + as extreme) / (1 + drawn)``, which is never 0. The same signs serve all features.

    Args:
        differences: [N, F], the pairs' differences.
        n_permutations: how many to draw at most.
        seed: of the draw.

    Raises:
        InputError: if ``n_permutations`` is below 1.
    """
    if n_permutations < 1:
        raise InputError(f"n_permutations is {n_permutations}: draw at least one")
    n_pairs = len(differences)
    exact = 2**n_pairs <= n_permutations
    signs = _all_signs(n_pairs) if exact else _drawn_signs(n_pairs, n_permutations, seed)  # [R, N]
    differences = differences.float().cpu()
    extreme = torch.cat(
        [_count_extreme(signs, part) for part in differences.split(max(1, _CHUNK // len(signs)), dim=1)]
    )
    return extreme / len(signs) if exact else (extreme + 1) / (len(signs) + 1)


def _all_signs(n_pairs: int) -> Tensor:
    """Return every row of N signs, [2 ** N, N]."""
    bits = torch.arange(2**n_pairs)[:, None] >> torch.arange(n_pairs) & 1
    return bits.float() * 2 - 1


def _drawn_signs(n_pairs: int, n_rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (n_rows, n_pairs), generator=generator).float() * 2 - 1


def _count_extreme(signs: Tensor, differences: Tensor) -> Tensor:
    """Count the rows of signs that give at least the sum that was observed, [F] float64."""
    # Sums that are equal differ by rounding; counting them as equal is the careful side.
    observed = differences.sum(dim=0).abs() - 1e-6 * differences.abs().sum(dim=0)
    return (signs @ differences).abs_().ge_(observed).sum(dim=0, dtype=torch.float64)


def q_values(p_values: Tensor) -> Tensor:
    """Return Benjamini and Hochberg's adjusted p-values, [F].

    Calling a discovery what has ``q <= a`` keeps the expected share of false ones among them at ``a`` or below, for
    tests that are independent or depend positively on each other.
    """
    order = p_values.argsort(descending=True)
    ranks = torch.arange(len(p_values), 0, -1, dtype=p_values.dtype)
    adjusted = (p_values[order] * len(p_values) / ranks).cummin(dim=0).values
    return torch.empty_like(p_values).scatter_(0, order, adjusted)
