"""Perturbation methods: mask tokens and measure how the values of all steps of a text change, without gradients.

The methods replace embeddings of tokens, so positions do not change. What is masked as one, a token or a group of
tokens, is a feature (``Step.features``); its score is stored at its first token. Shapes: T tokens of a step's text, F
features that may be masked, N masked texts, D hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpret.attribution.methods.masked_texts import masked_values
from interpret.attribution.steps.step import Baseline, Step
from interpret.errors import InputError
from interpret.prompts.spelling import piece


def occlusion(steps: Sequence[Step], *, window: int = 1, baseline: Baseline = "zero") -> list[Tensor]:
    """Return how much each value drops when a token is masked, f(text) - f(masked text), signed, [T] for each step.

    Zeiler and Fergus 2014 (arXiv:1311.2901), section 4.2, over tokens or groups. A window starts at every feature; the
    score of a feature is the mean over the windows that contain it.

    Args:
        steps: steps of one text.
        window: number of neighbouring features masked together, 1 to F.
        baseline: the embedding of masked tokens, see ``Step.baseline``.

    Raises:
        InputError: for a window below 1 or above F, or an unknown baseline.
    """
    for step in steps:
        n = len(step.features)
        if not 1 <= window <= n:
            what = "tokens" if step.groups is None else "groups"
            raise InputError(f"window is {window}; the text before {name_of(step)} allows 1 to {n} {what}")
    n_features = len(steps[-1].features)
    starts, columns = torch.arange(n_features - window + 1)[:, None], torch.arange(n_features)
    covers = (starts <= columns) & (columns < starts + window)  # [windows, F]
    whole = torch.zeros(1, n_features, dtype=torch.bool)
    masked = masked_tokens(torch.cat([whole, covers]), steps[-1].features)
    plain, *without = masked_values(steps, masked, steps[-1].baseline(baseline))
    lost = plain - torch.stack(without)  # [windows, steps]
    scores = []
    for number, step in enumerate(steps):
        n = len(step.features)
        own = covers[: n - window + 1, :n]  # the windows inside the step's text
        scores.append(step.at_tokens(lost[: len(own), number] @ own.double() / own.sum(0)))
    return scores


def masked_tokens(masked: Tensor, features: Tensor) -> Tensor:
    """Return which tokens are masked if some features are, [N, F] and [F, T] -> [N, T] bool."""
    return masked.double() @ features.double() > 0


def lime(
    steps: Sequence[Step],
    *,
    n_samples: int = 500,
    mask_probability: float = 0.3,
    kernel_width: float = 0.25,
    penalty: float = 0.01,
    baseline: Baseline = "eos",
    seed: int = 0,
) -> list[Tensor]:
    """Return the coefficient of each token in a linear model fitted to masked texts (LIME), [T] for each step.

    Ribeiro et al. 2016 (arXiv:1602.04938), sections 3.3 to 3.5. The features are whether each token, or group, is
    present; a masked token has the embedding of the baseline. Special tokens are never masked alone, and their score is
    0. The step's detail ``r2`` is the weighted share of the variance of the values that the linear model explains, NaN
    if the values do not vary.

    Args:
        steps: steps of one text.
        n_samples: N, the number of sampled texts, including the unmasked text; at least 2.
        mask_probability: probability that a feature is masked; above 0 and below 1.
        kernel_width: a text with the share d of its features masked has the weight exp(-(d / width)^2); above 0.
        penalty: ridge penalty on the squared coefficients, for weights with a mean of 1; at least 0.
        baseline: the embedding of masked tokens, see ``Step.baseline``.
        seed: random seed; the masks of the first features do not depend on the length of the text.

    Raises:
        InputError: for an option out of range, an unknown baseline, or a text with only special tokens.
    """
    _check_lime(n_samples, mask_probability, kernel_width, penalty)
    free = [free_features(step, "LIME") for step in steps]
    masks = token_masks(n_samples, len(free[-1]), mask_probability, seed)  # [N, F] of the last step
    masked = masked_tokens(masks == 0, steps[-1].features[free[-1]])
    values = masked_values(steps, masked, steps[-1].baseline(baseline))
    scores = []
    for number, (step, own) in enumerate(zip(steps, free, strict=True)):
        there = masks[:, : len(own)]
        weights = proximity(there, kernel_width)
        # The mean weight is 1, so that the effect of the penalty does not depend on n_samples and kernel_width.
        fit = fit_ridge(there, values[:, number], weights / weights.mean(), penalty * n_samples)
        step.details["r2"] = fit.r2
        scores.append(scores_of_free(step, own, fit.coefficients))
    return scores


def free_features(step: Step, method: str) -> Tensor:
    """Return the indices of the features that may be masked, [F]: those that are not only special tokens.

    Raises:
        InputError: if there is none.
    """
    free = (step.features & ~step.special.cpu()).any(1).nonzero()[:, 0]
    if not len(free):
        raise InputError(f"the text before {name_of(step)} has only special tokens, which {method} never masks")
    return free


def scores_of_free(step: Step, free: Tensor, scores: Tensor) -> Tensor:
    """Return the scores of a step's free features at their tokens, [F] -> [T] float64; 0 for the others."""
    return step.at_tokens(torch.zeros(len(step.features), dtype=torch.float64).index_put((free,), scores))


def _check_lime(n_samples: int, mask_probability: float, kernel_width: float, penalty: float) -> None:
    if n_samples < 2:
        raise InputError(f"n_samples is {n_samples}; a linear model needs at least 2")
    if not 0 < mask_probability < 1:
        raise InputError(f"mask_probability is {mask_probability}; it must be above 0 and below 1")
    if kernel_width <= 0:
        raise InputError(f"kernel_width is {kernel_width}; it must be above 0")
    if penalty < 0:
        raise InputError(f"penalty is {penalty}; it must be at least 0")


def name_of(step: Step) -> str:
    """Return the attributed token of a step, for messages."""
    return f"token {piece(step.tokenizer, step.target)!r}"


@dataclass(frozen=True)
class LimeFit:
    """A linear model with F features: value = intercept + sum of the coefficients of the unmasked tokens."""

    coefficients: Tensor
    """[F], in the unit of the values: the effect of a token being present."""
    intercept: float
    r2: float
    """Weighted share of the variance of the values that the model explains, at most 1; NaN if they do not vary."""


def token_masks(n_samples: int, n_features: int, mask_probability: float, seed: int) -> Tensor:
    """Sample masks, [N, F] of 0 (masked) and 1 (present); the first row is the unmasked input.

    The masks of the first features do not depend on the number of features.
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
    intercept is not penalised.

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
    # The last digits of the default driver, gelsy, depend on where in memory the matrix is.
    coefficients = torch.linalg.lstsq(gram, (x.T @ (weights * y))[:, None], driver="gelsd").solution[:, 0]
    spread, unexplained = weights @ y**2, weights @ (y - x @ coefficients) ** 2
    r2 = float(1 - unexplained / spread) if spread > 1e-12 * (weights @ values**2) else float("nan")
    return LimeFit(coefficients, float(value_mean - mask_means @ coefficients), r2)
