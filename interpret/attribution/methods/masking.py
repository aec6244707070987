"""Perturbation methods: mask tokens and measure how the values of all steps of a text change, without gradients.

Both methods replace embeddings of tokens, so positions do not change. Shapes: T tokens of a step's text, F of them
that may be masked, N masked texts, D hidden width.
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

    Zeiler and Fergus 2014 (arXiv:1311.2901), section 4.2, over tokens. A window starts at every token; the score of a
    token is the mean over the windows that contain it.

    Args:
        steps: steps of one text.
        window: number of neighbouring tokens masked together, 1 to T.
        baseline: the embedding of masked tokens, see ``Step.baseline``.

    Raises:
        InputError: for a window below 1 or above T, or an unknown baseline.
    """
    for step in steps:
        if not 1 <= window <= len(step.ids):
            raise InputError(f"window is {window}; the text before {_name(step)} allows 1 to {len(step.ids)} tokens")
    n_tokens = len(steps[-1].ids)
    starts, columns = torch.arange(n_tokens - window + 1)[:, None], torch.arange(n_tokens)
    covers = (starts <= columns) & (columns < starts + window)  # [windows, tokens]
    masked = torch.cat([torch.zeros(1, n_tokens, dtype=torch.bool), covers])
    plain, *without = masked_values(steps, masked, steps[-1].baseline(baseline))
    lost = plain - torch.stack(without)  # [windows, steps]
    scores = []
    for number, step in enumerate(steps):
        own = covers[: len(step.ids) - window + 1, : len(step.ids)]  # the windows inside the step's text
        scores.append(lost[: len(own), number] @ own.double() / own.sum(0))
    return scores


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

    Ribeiro et al. 2016 (arXiv:1602.04938), sections 3.3 to 3.5. The features are whether each token is present; a
    masked token has the embedding of the baseline. Special tokens are never masked, and their score is 0. The step's
    detail ``r2`` is the weighted share of the variance of the values that the linear model explains, NaN if the values
    do not vary.

    Args:
        steps: steps of one text.
        n_samples: N, the number of sampled texts, including the unmasked text; at least 2.
        mask_probability: probability that a token is masked; above 0 and below 1.
        kernel_width: a text with the share d of its tokens masked has the weight exp(-(d / width)^2); above 0.
        penalty: ridge penalty on the squared coefficients, for weights with a mean of 1; at least 0.
        baseline: the embedding of masked tokens, see ``Step.baseline``.
        seed: random seed; the masks of the first tokens do not depend on the length of the text.

    Raises:
        InputError: for an option out of range, an unknown baseline, or a text with only special tokens.
    """
    _check_lime(n_samples, mask_probability, kernel_width, penalty)
    free = [(~step.special).nonzero()[:, 0].cpu() for step in steps]  # [F] each
    for step, own in zip(steps, free, strict=True):
        if not len(own):
            raise InputError(f"the text before {_name(step)} has only special tokens, which LIME never masks")
    masks = token_masks(n_samples, len(free[-1]), mask_probability, seed)  # [N, F] of the last step
    masked = torch.zeros(n_samples, len(steps[-1].ids), dtype=torch.bool)
    masked[:, free[-1]] = masks == 0
    values = masked_values(steps, masked, steps[-1].baseline(baseline))
    scores = []
    for number, (step, own) in enumerate(zip(steps, free, strict=True)):
        there = masks[:, : len(own)]
        weights = proximity(there, kernel_width)
        # The mean weight is 1, so that the effect of the penalty does not depend on n_samples and kernel_width.
        fit = fit_ridge(there, values[:, number], weights / weights.mean(), penalty * n_samples)
        step.details["r2"] = fit.r2
        scores.append(torch.zeros(len(step.ids), dtype=torch.float64).index_put((own,), fit.coefficients))
    return scores


def _check_lime(n_samples: int, mask_probability: float, kernel_width: float, penalty: float) -> None:
    if n_samples < 2:
        raise InputError(f"n_samples is {n_samples}; a linear model needs at least 2")
    if not 0 < mask_probability < 1:
        raise InputError(f"mask_probability is {mask_probability}; it must be above 0 and below 1")
    if kernel_width <= 0:
        raise InputError(f"kernel_width is {kernel_width}; it must be above 0")
    if penalty < 0:
        raise InputError(f"penalty is {penalty}; it must be at least 0")


def _name(step: Step) -> str:
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
