"""Gradient methods on word embeddings: derivatives of a step's value, [T, D], at one or several points.

Signs are kept and D is not reduced; ``Attribution.aggregate`` reduces it, by default to a norm for saliency. No
gradient is left on the model. Shapes are those of ``steps``; N points or samples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of, check_insides
from interpret.anatomy.changes import Changes
from interpret.attribution.steps.derivatives import Rule, WayBack, gradients, sides, summed_gradients, values
from interpret.attribution.steps.fitting import at_once
from interpret.attribution.steps.step import Baseline, Step
from interpret.device import sent
from interpret.engine.pullback import derivative
from interpret.errors import InputError

_SAME = 1e-6
"""If two inputs of an activation function are closer than this, rounding errors dominate the slope between them."""


def saliency(steps: Sequence[Step]) -> list[Tensor]:
    """Return the gradients, [T, D] for each step; Simonyan et al. 2013 (arXiv:1312.6034), who take absolute values.

    Li et al. 2016 (arXiv:1506.01066) do so for words of a text.
    """
    x = steps[-1].embeddings
    return summed_gradients(steps, 1, lambda _: (x, torch.ones_like(x)))


def input_x_gradient(steps: Sequence[Step]) -> list[Tensor]:
    """Return embedding times gradient, [T, D] for each step; Shrikumar et al. 2016 (arXiv:1605.01713)."""
    embeddings = steps[-1].embeddings[0]
    return [embeddings[: len(slope)] * slope for slope in saliency(steps)]


def integrated_gradients(steps: Sequence[Step], *, n_steps: int = 50, baseline: Baseline = "zero") -> list[Tensor]:
    """Return integrated gradients: gradients integrated from a baseline to the text, times their difference.

    Sundararajan et al. 2017 (arXiv:1703.01365), equation 1, by Gauss-Legendre quadrature. The scores of a step add up
    to the change of its value from baseline to text, except for a numerical error: the step's detail ``delta``, the sum
    of the scores minus that change.

    Args:
        steps: steps of one text; all read the same points on the path.
        n_steps: number of points on the path.
        baseline: the start of the path, see ``Step.baseline``. Near ``zero`` the gradients of models with RMSNorm
            change quickly: check ``delta``.

    Returns:
        Scores, [T, D] for each step.

    Raises:
        InputError: for ``n_steps`` below 1, or an unknown baseline.
    """
    check_count("n_steps", n_steps)
    x, start = steps[-1].embeddings, steps[-1].baseline(baseline)
    shares, weights = quadrature(n_steps, x)
    slopes = summed_gradients(steps, n_steps, lambda some: ((start + shares[some] * (x - start)).to(x), weights[some]))
    found = [(x - start)[0, : len(slope)] * slope for slope in slopes]
    for step, scores, (end, begin) in zip(steps, found, values(steps, torch.cat([x, start])), strict=True):
        step.details["delta"] = (scores.sum() - (end - begin)).item()
    return found


def sequential_integrated_gradients(
    steps: Sequence[Step], *, n_steps: int = 20, baseline: Baseline = "zero"
) -> list[Tensor]:
    """Return sequential integrated gradients: those of each token along a path on which only this token moves.

    Enguehard 2023 (arXiv:2305.15853), equation 2, by Gauss-Legendre quadrature. The other tokens keep their embeddings.
    So the scores of a token, summed over D, are the change of the value when the token alone becomes the baseline, as
    in occlusion, except for a numerical error: the step's detail ``delta``, the sum of all scores minus these changes.
    What is new are the shares of the dimensions, which the norm of the scores (``aggregate("l2")``) shows.

    Args:
        steps: steps of one text; all read the same points.
        n_steps: number of points on the path of each token; T times as many gradients are taken.
        baseline: the start of each path, see ``Step.baseline``.

    Returns:
        Scores, [T, D] for each step.

    Raises:
        InputError: for ``n_steps`` below 1, or an unknown baseline.
    """
    check_count("n_steps", n_steps)
    x, start = steps[-1].embeddings, steps[-1].baseline(baseline)
    shares, weights = quadrature(n_steps, x)
    each = torch.eye(x.shape[1], dtype=torch.bool)[steps[-1].features.any(0)]
    moving = sent(each[:, :, None], x.device)  # [F, T, 1]: which token moves, one of F

    def point(some: slice) -> tuple[Tensor, Tensor]:
        index = torch.arange(some.start, some.stop, device=x.device)
        own, at = moving[index // n_steps], index % n_steps
        return torch.where(own, start + shares[at] * (x - start), x).to(x), weights[at] * own

    slopes = summed_gradients(steps, len(moving) * n_steps, point)
    found = [(x - start)[0, : len(slope)] * slope for slope in slopes]
    ends = values(steps, torch.cat([x, torch.where(moving, start, x)]))
    for step, scores, (end, *begins) in zip(steps, found, ends, strict=True):
        step.details["delta"] = (scores.sum() - (end - torch.stack(begins)).sum()).item()
    return found


def quadrature(n_points: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points of Gauss-Legendre quadrature on [0, 1] and their weights, [N, 1, 1] each.

    Args:
        n_points: number N of points.
        like: a tensor whose device and dtype are used; the dtype is float32 or higher precision.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_points)  # on [-1, 1]
    both = torch.tensor(np.stack([(nodes + 1) / 2, weights / 2]))[:, :, None, None]
    points, weights = both.to(like.device, torch.promote_types(like.dtype, torch.float32))
    return points, weights


def gradient_shap(
    steps: Sequence[Step], *, n_samples: int = 20, noise: float = 0.0, baseline: Baseline = "zero", seed: int = 0
) -> list[Tensor]:
    """Return gradient SHAP: the expected gradient between baseline and text, times their difference.

    Lundberg and Lee 2017 (arXiv:1705.07874); expected gradients of Erion et al. 2019 (arXiv:1906.10670), equation 4,
    with one baseline. Each sample is a point drawn uniformly on the path from the baseline to the text.

    Args:
        steps: steps of one text; without noise, all read the same points.
        n_samples: N, the number of samples.
        noise: standard deviation of Gaussian noise added to the embeddings of the text for each sample.
        baseline: the start of the path, see ``Step.baseline``.
        seed: random seed; the points on the path are the same for each step.

    Returns:
        Scores, [T, D] for each step.

    Raises:
        InputError: for ``n_samples`` below 1, negative noise, or an unknown baseline.
    """
    check_count("n_samples", n_samples)
    if noise < 0:
        raise InputError(f"noise is {noise}; a standard deviation must not be negative")
    # With noise, each step has its own draws, of the length of its own text.
    alike = [steps] if noise == 0 else [[step] for step in steps]
    return [scores for some in alike for scores in _expected_gradients(some, n_samples, noise, baseline, seed)]


def _expected_gradients(
    steps: Sequence[Step], n_samples: int, noise: float, baseline: Baseline, seed: int
) -> list[Tensor]:
    """Return the scores of steps that read the same samples."""
    x, start = steps[-1].embeddings, steps[-1].baseline(baseline)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    shares = torch.rand(n_samples, 1, 1, generator=generator)
    ways = (x - start).expand(n_samples, -1, -1)
    if noise:
        drawn = torch.cat([torch.randn(x.shape, generator=generator) for _ in shares])  # [N, T, D]
        ways = torch.where(steps[-1].kept[:, None], 0, x + noise * drawn.to(x) - start)
    shares = shares.to(x)
    return summed_gradients(steps, n_samples, lambda some: (start + shares[some] * ways[some], ways[some] / n_samples))


def deeplift(steps: Sequence[Step], *, baseline: Baseline = "zero") -> list[Tensor]:
    """Return DeepLIFT's contributions by the rescale rule; Shrikumar et al. 2017 (arXiv:1704.02685), 3.5.1.

    Computed as a modified gradient (Ancona et al. 2018, arXiv:1711.06104): the activation functions of the MLPs
    backpropagate the slope between text and baseline instead of their derivative. Attention, norms and products
    backpropagate their derivatives, so the scores do not add up exactly to the change of the value.

    Args:
        steps: steps of one text.
        baseline: the reference with which the text is compared, see ``Step.baseline``.

    Returns:
        Scores, [T, D] for each step.

    Raises:
        InputError: for an unknown baseline.
    """
    x, start = steps[-1].embeddings, steps[-1].baseline(baseline)
    both = torch.cat([x, start])
    slopes = [slope[0] for some in sides(steps) for slope in _rescaled_gradients(some, both)]
    return [(x - start)[0, : len(slope)] * slope for slope in slopes]


def _rescaled_gradients(steps: Sequence[Step], both: Tensor) -> list[Tensor]:
    """Return the gradients by the rescale rule, [1, T, D] for each step; ``both`` has the text and its baseline."""
    way, rule = WayBack.of(steps[-1]), rescale_rule(steps[-1].model)
    text = both[:, : len(steps[-1].ids)]
    return at_once(steps[-1], lambda: list(gradients(steps, way, text, rule)))


def rescale_rule(model: PreTrainedModel) -> Rule:
    """Return DeepLIFT's rescale rule, for passes whose second half of rows are the baselines of the first."""
    return Rule(_slope_between, partial(rescaled, model), n_rows=1)


@contextmanager
def rescaled(model: PreTrainedModel) -> Iterator[None]:
    """Backpropagate slopes through the MLPs' activation functions; the second half of each batch is the baseline."""
    anatomy = anatomy_of(model)
    path = anatomy.neuron_parts.activation
    check_insides(model)
    # A module shared by several layers is hooked once.
    modules = {id(module): module for module in (layer.get_submodule(path) for layer in anatomy.layers)}
    with Changes() as change, change:
        for module in modules.values():
            change.after(module, _rescale)
        yield


def _rescale(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    x, start = args[0].chunk(2)
    y, y_start = output.chunk(2)
    slope, near = _slope(x, start, y, y_start)
    straight = y.detach() + slope * (x - x.detach())
    return torch.cat([torch.where(near, y, straight), y_start])


def _slope_between(activation: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return the slope of an activation function between text and baseline, [2, T, F] -> [1, T, F]."""
    x, start = inputs.chunk(2)
    slope, near = _slope(x, start, *activation(inputs).chunk(2))
    return torch.where(near, derivative(activation, x), slope)


def _slope(x: Tensor, start: Tensor, y: Tensor, y_start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slope between two points, and where they are too near for one."""
    difference = (x - start).detach()
    near = difference.abs() < _SAME
    # Filled, because an infinite slope gives a NaN gradient (0 * inf) even where it is not selected.
    return (y - y_start).detach() / difference.masked_fill(near, 1), near


def check_count(name: str, count: int) -> None:
    """Raise an InputError if a count is below 1."""
    if count < 1:
        raise InputError(f"{name} is {count}; give at least 1")
