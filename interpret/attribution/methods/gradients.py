"""Gradient methods on word embeddings: derivatives of a step's value, [T, D], at one or several points.

Signs are kept and D is not reduced: Inseq's saliency is the L2 norm of the scores here (``aggregate("l2")``). No
gradient is left on the model. Shapes are those of ``steps``; N points or samples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of, check_insides
from interpret.anatomy.changes import Changes
from interpret.anatomy.passes import grad_mode
from interpret.attribution.steps.fitting import at_once, in_parts
from interpret.attribution.steps.step import Baseline, Step
from interpret.errors import InputError

_SAME = 1e-6
"""If two inputs of an activation function are closer than this, rounding errors dominate the slope between them."""


def derivatives(value: Tensor, of: Sequence[Tensor], *, again: bool = False) -> tuple[Tensor, ...]:
    """Return the derivatives of a scalar with respect to tensors; zeros if it does not depend on one.

    Args:
        value: a scalar.
        of: tensors to differentiate with respect to.
        again: whether to keep the graph for another call.

    Raises:
        InputError: if the value has no autograd graph.
    """
    if not value.requires_grad:
        raise InputError("the attributed function has no gradient: compute it from reading.logits, without detaching")
    return torch.autograd.grad(value, of, retain_graph=again, allow_unused=True, materialize_grads=True)


def gradient(step: Step, embeddings: Tensor) -> Tensor:
    """Return the derivative of a step's value with respect to the embeddings of each row: [B, T, D] -> [B, T, D]."""

    def at(some: Tensor) -> Tensor:
        some = some.detach().requires_grad_()
        return derivatives(step.value(some).sum(), [some])[0]

    return in_parts(step, embeddings, at)


def saliency(steps: Sequence[Step]) -> list[Tensor]:
    """Return the gradients, [T, D] for each step.

    Simonyan et al. 2013 (arXiv:1312.6034), who take absolute values. All steps share one forward pass, because a token
    does not attend to later ones.
    """
    return at_once(steps[-1], lambda: _gradients(steps))


def _gradients(steps: Sequence[Step]) -> list[Tensor]:
    last = steps[-1]
    embeddings = last.embeddings.clone().requires_grad_()
    states = last.states(embeddings)
    found = []
    for step in steps:
        T = len(step.ids)
        value = step.read(step.head(states[:, T - len(last.ids) - 1]), embeddings[:, :T])
        (slope,) = derivatives(value.sum(), [embeddings], again=step is not last)
        found.append(slope[0, :T])
    return found


def input_x_gradient(steps: Sequence[Step]) -> list[Tensor]:
    """Return embedding times gradient, [T, D] for each step; Shrikumar et al. 2016 (arXiv:1605.01713)."""
    embeddings = steps[-1].embeddings[0]
    return [embeddings[: len(slope)] * slope for slope in saliency(steps)]


def integrated_gradients(step: Step, *, n_steps: int = 50, baseline: Baseline = "zero") -> Tensor:
    """Return integrated gradients: gradients integrated from a baseline to the text, times their difference, [T, D].

    Sundararajan et al. 2017 (arXiv:1703.01365), equation 1, by Gauss-Legendre quadrature. The scores of a step add up
    to the change of its value from baseline to text, except for a numerical error: the step's detail ``delta``, the sum
    of the scores minus that change.

    Args:
        step: the step to attribute.
        n_steps: number of points on the path.
        baseline: the start of the path, see ``Step.baseline``. Near ``zero`` the gradients of models with RMSNorm
            change quickly: check ``delta``.

    Raises:
        InputError: for ``n_steps`` below 1, or an unknown baseline.
    """
    check_count("n_steps", n_steps)
    x, start = step.embeddings, step.baseline(baseline)
    total: Tensor | float = 0.0
    for shares, weights in quadrature(n_steps, step.batch_size, x):
        total += (weights * gradient(step, (start + shares * (x - start)).to(x))).sum(0)
    scores = (x - start)[0] * total
    with grad_mode(False):
        end, begin = in_parts(step, torch.cat([x, start]), step.value)
    step.details["delta"] = (scores.sum() - (end - begin)).item()
    return scores


def quadrature(n_points: int, batch_size: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the points of Gauss-Legendre quadrature on [0, 1] and their weights, in batches, [B, 1, 1] each.

    Args:
        n_points: number of points.
        batch_size: maximum number of points in a batch.
        like: a tensor whose device and dtype are used; the dtype is float32 or higher precision.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_points)  # on [-1, 1]
    both = torch.tensor(np.stack([(nodes + 1) / 2, weights / 2]))[:, :, None, None]
    both = both.to(like.device, torch.promote_types(like.dtype, torch.float32))
    yield from zip(*(of.split(batch_size) for of in both), strict=True)


def gradient_shap(
    step: Step, *, n_samples: int = 20, noise: float = 0.0, baseline: Baseline = "zero", seed: int = 0
) -> Tensor:
    """Return gradient SHAP: the expected gradient between baseline and text, times their difference, [T, D].

    Lundberg and Lee 2017 (arXiv:1705.07874); expected gradients of Erion et al. 2019 (arXiv:1906.10670), equation 4,
    with one baseline. Each sample is a point drawn uniformly on the path from the baseline to the text.

    Args:
        step: the step to attribute.
        n_samples: N, the number of samples.
        noise: standard deviation of Gaussian noise added to the embeddings of the text for each sample.
        baseline: the start of the path, see ``Step.baseline``.
        seed: random seed; the points on the path are the same for each step.

    Raises:
        InputError: for ``n_samples`` below 1, negative noise, or an unknown baseline.
    """
    check_count("n_samples", n_samples)
    if noise < 0:
        raise InputError(f"noise is {noise}; a standard deviation must not be negative")
    x, start = step.embeddings, step.baseline(baseline)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    shares = torch.rand(n_samples, 1, 1, generator=generator)
    total = torch.zeros_like(x[0])
    for some in shares.to(x).split(step.batch_size):
        # Drawn sample by sample, so that the draws do not depend on the batch size.
        drawn = torch.cat([torch.randn(x.shape, generator=generator) for _ in some])  # [B, T, D]
        difference = x + noise * drawn.to(x) - start
        total += (difference * gradient(step, start + some * difference)).sum(0)
    return total / n_samples


def deeplift(step: Step, *, baseline: Baseline = "zero") -> Tensor:
    """Return DeepLIFT's contributions by the rescale rule, [T, D]; Shrikumar et al. 2017 (arXiv:1704.02685), 3.5.1.

    Computed as a modified gradient (Ancona et al. 2018, arXiv:1711.06104): the activation functions of the MLPs
    backpropagate the slope between text and baseline instead of their derivative. Attention, norms and products
    backpropagate their derivatives, so the scores do not add up exactly to the change of the value.

    Args:
        step: the step to attribute.
        baseline: the reference with which the text is compared, see ``Step.baseline``.

    Raises:
        InputError: for an unknown baseline.
    """
    both = torch.cat([step.embeddings, step.baseline(baseline)]).requires_grad_()  # [2, T, D]
    with rescaled(step.model):
        (found,) = at_once(step, lambda: derivatives(step.value(both)[0], [both]))
    x, start = both.detach()
    return (x - start) * found[0]


@contextmanager
def rescaled(model: PreTrainedModel) -> Iterator[None]:
    """Backpropagate slopes through the MLPs' activation functions; the second half of each batch is the baseline."""
    anatomy = anatomy_of(model)
    path = anatomy.parts.activation
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
    difference = (x - start).detach()
    near = difference.abs() < _SAME
    # Filled, because an infinite slope gives a NaN gradient (0 * inf) even where it is not selected.
    slope = (y - y_start).detach() / difference.masked_fill(near, 1)
    straight = y.detach() + slope * (x - x.detach())
    return torch.cat([torch.where(near, y, straight), y_start])


def check_count(name: str, count: int) -> None:
    """Raise an InputError if a count is below 1."""
    if count < 1:
        raise InputError(f"{name} is {count}; give at least 1")
