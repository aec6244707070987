"""Methods that mask tokens and look what happens to the value of a step; no gradient is needed.

Both put other embeddings in the place of tokens, so positions stay what they are. Letters: T tokens of the text, F of
them that may be masked, N masked texts, D width of an embedding.
"""

import torch
from torch import Tensor

from interpret.attribution.lime import fit_ridge, proximity, token_masks
from interpret.attribution.masked import masked_values
from interpret.attribution.steps import Baseline, Step
from interpret.errors import InputError


def occlusion(step: Step, *, window: int = 1, baseline: Baseline = "zero") -> Tensor:
    """Return what the value loses without a token: f(text) - f(text without the window), signed, [T].

    Zeiler and Fergus 2014 (arXiv:1311.2901), section 4.2, over tokens. Windows stand at every place; the score of a
    token is the mean over the windows it is in.

    Args:
        step: the step.
        window: neighbouring tokens masked together, 1 to T.
        baseline: what stands in place of a masked token, see ``Step.baseline``.

    Raises:
        InputError: for a window that does not fit, or a wrong baseline.
    """
    T = len(step.ids)
    if not 1 <= window <= T:
        raise InputError(f"window is {window}; the text before {_name(step)} has room for windows of 1 to {T} tokens")
    starts = torch.arange(T - window + 1)[:, None]
    columns = torch.arange(T)
    covers = (starts <= columns) & (columns < starts + window)  # [windows, T]
    masked = torch.cat([torch.zeros(1, T, dtype=torch.bool), covers])
    values = masked_values(step, masked, step.baseline(baseline))
    lost = values[0] - values[1:]  # [windows]
    return lost @ covers.double() / covers.sum(0)


def lime(
    step: Step,
    *,
    n_samples: int = 500,
    mask_probability: float = 0.3,
    kernel_width: float = 0.25,
    penalty: float = 0.01,
    baseline: Baseline = "eos",
    seed: int = 0,
) -> Tensor:
    """Return what each token adds to the value in a linear model fitted around the text, [T].

    Ribeiro et al. 2016 (arXiv:1602.04938), sections 3.3 to 3.5. The features are which tokens are there; a masked
    token has the embedding of a real one. Special tokens are never masked, and their score is 0. The step's detail
    ``r2`` is the weighted share of the values' variance that the linear model explains, NaN where they do not vary.

    Args:
        step: the step.
        n_samples: N, texts that are drawn, the whole text among them; at least 2.
        mask_probability: of each token, between 0 and 1.
        kernel_width: a text with the share d of its tokens masked weighs exp(-(d / width)^2).
        penalty: of the ridge regression, on the squared coefficients, for weights with a mean of 1; at least 0.
        baseline: the token masked ones become, see ``Step.baseline``.
        seed: of the draws; texts of equal length see the same ones.

    Raises:
        InputError: for an option out of its range, a wrong baseline, or a text of special tokens alone.
    """
    _check_lime(n_samples, mask_probability, kernel_width, penalty)
    free = (~step.special).nonzero()[:, 0].cpu()  # [F]
    if not len(free):
        raise InputError(f"the text before {_name(step)} has only special tokens, which LIME never masks")
    masks = token_masks(n_samples, len(free), mask_probability, seed)  # [N, F]
    masked = torch.zeros(n_samples, len(step.ids), dtype=torch.bool)
    masked[:, free] = masks == 0
    values = masked_values(step, masked, step.baseline(baseline))
    weights = proximity(masks, kernel_width)
    # Weights of mean 1, so that the penalty means the same for every number of samples and width.
    fit = fit_ridge(masks, values, weights / weights.mean(), penalty * n_samples)
    step.details["r2"] = fit.r2
    scores = torch.zeros(len(step.ids), dtype=torch.float64)
    scores[free] = fit.coefficients
    return scores


def _check_lime(n_samples: int, mask_probability: float, kernel_width: float, penalty: float) -> None:
    if n_samples < 2:
        raise InputError(f"n_samples is {n_samples}; a linear model needs at least 2")
    if not 0 < mask_probability < 1:
        raise InputError(f"mask_probability is {mask_probability}; it lies between 0 and 1")
    if kernel_width <= 0:
        raise InputError(f"kernel_width is {kernel_width}; it is above 0")
    if penalty < 0:
        raise InputError(f"penalty is {penalty}; it is at least 0")


def _name(step: Step) -> str:
    return f"token {step.tokenizer.convert_ids_to_tokens(step.target)!r}"
