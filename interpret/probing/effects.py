"""Statistics of paired samples: Hedges' g, sign-flip permutation tests and false discovery rates.

Sources: Hedges (1981) for the effect size, Phipson and Smyth (2010) for p-values of random permutations, Benjamini
and Hochberg (1995) for multiple tests. A feature with a value that is not finite (NaN or infinity) has no statistics:
they are NaN, and it is not counted among the tests. Shapes: N pairs, F features that are tested together.
"""

import torch
from torch import Tensor

from interpret.errors import InputError

_CHUNK = 1 << 19
"""Number of values held at once while permutations are counted: 2 MiB, which fit into the processor's cache."""


def effect_sizes(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return Cohen's d and Hedges' g of ``left`` against ``right``, [F] float64 each.

    d is the difference of the means divided by the pooled standard deviation (with n - 1 for each set); g is d times
    ``1 - 3 / (4 * (N + M) - 9)``, which corrects the bias of d in small samples. If neither set varies, both are 0 for
    equal means and infinite otherwise. Both are NaN for a feature with a value that is not finite.

    Args:
        left: [N, F], N at least 2.
        right: [M, F], M at least 2.
    """
    left, right = left.double(), right.double()
    n, m = len(left), len(right)
    difference = left.mean(dim=0) - right.mean(dim=0)
    pooled = (((n - 1) * left.var(dim=0) + (m - 1) * right.var(dim=0)) / (n + m - 2)).sqrt()
    d = torch.where(difference == 0, 0.0, difference / pooled)
    d = d.masked_fill(~(_all_finite(left) & _all_finite(right)), torch.nan)
    return d, d * (1 - 3 / (4 * (n + m) - 9))


def permutation_p_values(differences: Tensor, *, n_permutations: int, seed: int) -> Tensor:
    """Return the two-sided p-value of each feature's mean difference within pairs, [F] float64.

    Under the null hypothesis, the difference of every pair is equally likely with the opposite sign. If
    ``2 ** N <= n_permutations``, all sign patterns are counted; otherwise ``n_permutations`` random ones are drawn, and
    p is ``(1 + number at least as extreme) / (1 + number drawn)``, which is never 0. All features use the same signs.
    p is NaN for a feature with a difference that is not finite.

    Args:
        differences: [N, F], the differences within pairs.
        n_permutations: the largest number of sign patterns.
        seed: random seed of the sign patterns.

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
    p_values = extreme / len(signs) if exact else (extreme + 1) / (len(signs) + 1)
    return p_values.masked_fill(~_all_finite(differences), torch.nan)


def _all_finite(values: Tensor) -> Tensor:
    """Tell which features, [F], have only finite values, [N, F]."""
    return values.isfinite().all(dim=0)


def _all_signs(n_pairs: int) -> Tensor:
    """Return all patterns of N signs, [2 ** N, N]."""
    bits = torch.arange(2**n_pairs)[:, None] >> torch.arange(n_pairs) & 1
    return bits.float() * 2 - 1


def _drawn_signs(n_pairs: int, n_rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (n_rows, n_pairs), generator=generator).float() * 2 - 1


def _count_extreme(signs: Tensor, differences: Tensor) -> Tensor:
    """Count the sign patterns whose sum is at least as extreme as the observed one, [F] float64."""
    # Equal sums may differ by rounding; counting them as equal is conservative.
    observed = differences.sum(dim=0).abs() - 1e-6 * differences.abs().sum(dim=0)
    return (signs @ differences).abs_().ge_(observed).sum(dim=0, dtype=torch.float64)


def q_values(p_values: Tensor) -> Tensor:
    """Return p-values adjusted by the method of Benjamini and Hochberg, [F].

    If tests with ``q <= a`` are called significant, the expected share of false discoveries among them is at most
    ``a``, for tests that are independent or positively dependent. A p-value of NaN is not a test: its q is NaN, and the
    others are adjusted for their own number.
    """
    tested = p_values.isfinite()
    own = p_values[tested]
    order = own.argsort(descending=True)
    ranks = torch.arange(len(own), 0, -1, dtype=p_values.dtype)
    adjusted = (own[order] * len(own) / ranks).cummin(dim=0).values
    found = torch.full_like(p_values, torch.nan)
    found[tested] = torch.empty_like(own).scatter_(0, order, adjusted)
    return found
