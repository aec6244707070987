"""KernelSHAP: Shapley values of tokens or groups of tokens, from the values of texts in which others are masked.

Lundberg and Lee 2017 (arXiv:1705.07874), section 4.1. Shapes: F features (``Step.features``) that may be masked, N
coalitions (texts in which only some of them are present), G steps, T tokens.
"""

from collections.abc import Sequence
from itertools import groupby
from math import comb

import torch
from torch import Tensor

from interpret.attribution.methods.gradients import check_count
from interpret.attribution.methods.masked_texts import masked_values
from interpret.attribution.methods.masking import free_features, masked_tokens, scores_of_free
from interpret.attribution.steps.step import Baseline, Step
from interpret.errors import InputError

_SINGULAR = 1e-10
"""Singular values below this share of the largest are rounding errors: coalitions are zeros and ones."""


def kernel_shap(
    steps: Sequence[Step], *, n_samples: int = 512, baseline: Baseline = "eos", seed: int = 0
) -> list[Tensor]:
    """Return the Shapley value of each token, [T] for each step.

    The score of a feature, a token or a group, is the change of the value when it joins the features that are present,
    averaged over all orders in which they may join. The scores add up to the change from the text with all features
    masked to the text itself. They are exact if all 2^F - 2 coalitions fit into ``n_samples``, and otherwise estimated
    from coalitions that are drawn in pairs that complement each other (Covert and Lee 2021, arXiv:2012.01536). Special
    tokens are never masked alone, and their score is 0.

    Args:
        steps: steps of one text. Steps with the same features share the masked texts: those of a whole answer, or all
            if there are groups; otherwise each step has its own.
        n_samples: N at most, besides the unmasked text and the one with all features masked.
        baseline: the embedding of masked tokens, see ``Step.baseline``.
        seed: random seed of the coalitions.

    Raises:
        InputError: if ``n_samples`` is below 1 or too small to determine the scores, for an unknown baseline, or for a
            text with only special tokens.
    """
    check_count("n_samples", n_samples)
    scores: list[Tensor] = []
    for _, alike in groupby(steps, key=lambda step: len(step.features)):
        scores += _of_same_features(list(alike), n_samples, baseline, seed)
    return scores


def _of_same_features(steps: Sequence[Step], n_samples: int, baseline: Baseline, seed: int) -> list[Tensor]:
    last, free = steps[-1], free_features(steps[-1], "KernelSHAP")
    present, weights = coalitions(len(free), n_samples, seed)
    ends = torch.tensor([[True], [False]]).expand(2, len(free))
    masked = masked_tokens(~torch.cat([ends, present]), last.features[free])
    values = masked_values(steps, masked, last.baseline(baseline))  # [2 + N, G]
    fitted = shapley_values(present, values[2:] - values[1], weights, values[0] - values[1])
    if fitted is None:
        raise InputError(f"n_samples is {n_samples}, too few for the scores of {len(free)} features; give more")
    return [scores_of_free(step, free, own) for step, own in zip(steps, fitted.T, strict=True)]


def coalitions(n_features: int, n_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return coalitions, neither empty nor of all features, [N, F] bool, and their weights, [N] float64.

    All there are, weighted by the Shapley kernel, if they are at most ``n_samples``. Otherwise pairs of a coalition and
    its complement, with weights of 1: sizes are drawn by their share of the kernel, features uniformly.
    """
    sizes = torch.arange(1, n_features)
    if 2**n_features - 2 <= n_samples:
        numbers = torch.arange(1, 2**n_features - 1)
        present = (numbers[:, None] >> torch.arange(n_features)) & 1 == 1
        kernel = [1 / (comb(n_features, size) * size * (n_features - size)) for size in sizes.tolist()]
        return present, torch.tensor([0, *kernel], dtype=torch.float64)[present.sum(1)]
    generator = torch.Generator().manual_seed(seed)
    shares = 1 / (sizes * (n_features - sizes)).double()
    drawn = sizes[torch.multinomial(shares, max(1, n_samples // 2), replacement=True, generator=generator)]
    order = torch.rand(len(drawn), n_features, generator=generator).argsort(1).argsort(1)
    present = order < drawn[:, None]
    return torch.cat([present, ~present]), torch.ones(2 * len(drawn), dtype=torch.float64)


def shapley_values(present: Tensor, gains: Tensor, weights: Tensor, total: Tensor) -> Tensor | None:
    """Return the additive model of gains that adds up to the total, by weighted least squares.

    Minimises sum_i weights_i (gains_i - present_i . scores)^2 where the scores sum to ``total``.

    Args:
        present: [N, F] bool, the coalitions.
        gains: [N, G], the values of the coalitions minus that of the empty one.
        weights: [N].
        total: [G], the value of all features minus that of none.

    Returns:
        [F, G]; None if the coalitions do not determine the scores.
    """
    n_features = present.shape[1]
    shares = present.double().mean(1, keepdim=True)
    x = present.double() - shares  # every row sums to 0, so the scores that x finds do, too
    y = gains.double() - shares * total
    weighted = weights[:, None] * x
    # The last digits of the default driver, gelsy, depend on where in memory the matrix is.
    found = torch.linalg.lstsq(weighted.T @ x, weighted.T @ y, rcond=_SINGULAR, driver="gelsd")
    return found.solution + total / n_features if found.rank == n_features - 1 else None
