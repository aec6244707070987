"""The mathematics of LIME: a linear model of a function, fitted around one input over which tokens are there.

Ribeiro, Singh and Guestrin 2016, "Why Should I Trust You?", section 3.3 to 3.5 (arXiv 1602.04938). The interpretable
features are one bit a token, the proximity of a sample is an exponential kernel on the share of its tokens that are
masked, and the linear model is a ridge regression weighted by it. Nothing here knows a model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LimeFit:
    """A linear model of F features: value = intercept + sum of the coefficients of the tokens that are there."""

    coefficients: Tensor
    """[F], in the unit of the values: what a token that is there adds."""
    intercept: float
    r2: float
    """Weighted share of the values' variance the linear model explains, at most 1; NaN where they do not vary."""


def token_masks(n_samples: int, n_features: int, mask_probability: float, seed: int) -> Tensor:
    """Draw which tokens are there: [N, F] of 0 (masked) and 1 (there); the first row is the whole input.

    Of more features, the first ones are drawn alike.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(n_features, n_samples, generator=generator).T >= mask_probability).double()
    masks[0] = 1
    return masks


def proximity(masks: Tensor, kernel_width: float) -> Tensor:
    """Return the weight of each sample, exp(-(share of tokens masked / width)^2), [N, F] -> [N]."""
    return torch.exp(-(((1 - masks).mean(1) / kernel_width) ** 2))


def fit_ridge(masks: Tensor, values: Tensor, weights: Tensor, penalty: float) -> LimeFit:
    """Fit the values by a weighted ridge regression, in closed form.

    Minimises sum_i weights_i (values_i - intercept - masks_i . coefficients)^2 + penalty |coefficients|^2; the
    intercept is free of the penalty.

    Args:
        masks: [N, F].
        values: [N].
        weights: [N], not negative and not all 0.
        penalty: at least 0; above 0 the solution is unique.
    """
    masks, values, weights = masks.double(), values.double(), weights.double()
    total = weights.sum()
    mask_means, value_mean = weights @ masks / total, weights @ values / total
    x, y = masks - mask_means, values - value_mean
    gram = x.T @ (weights[:, None] * x) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    coefficients = torch.linalg.lstsq(gram, (x.T @ (weights * y))[:, None]).solution[:, 0]
    spread, unexplained = weights @ y**2, weights @ (y - x @ coefficients) ** 2
    r2 = float(1 - unexplained / spread) if spread > 1e-12 * (weights @ values**2) else float("nan")
    return LimeFit(coefficients, float(value_mean - mask_means @ coefficients), r2)
