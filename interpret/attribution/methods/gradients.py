"""Methods that go back to the word embeddings: the derivative of a step's value, [T, D], taken in different places.

Signs are kept and D is not reduced: what Inseq calls saliency is the L2 norm of ours (``aggregate("l2")``). No
gradient is left on the model. Letters are those of ``steps``; N points or samples.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of
from interpret.anatomy.passes import only_in_this_thread
from interpret.attribution.steps.fitting import at_once, in_parts
from interpret.attribution.steps.step import Baseline, Step
from interpret.errors import InputError

_SAME = 1e-6
"""Inputs of an activation closer than this have no slope between them worth its rounding errors."""


def derivatives(value: Tensor, of: Sequence[Tensor], *, again: bool = False) -> tuple[Tensor, ...]:
    """Return the derivatives of a scalar with respect to tensors; zeros where it does not depend on one.

    Args:
        value: a scalar.
        of: what to derive by.
        again: whether the graph is needed once more.

    Raises:
        InputError: if the value has no graph.
    """
    if not value.requires_grad:
        raise InputError("the attributed function has no gradient: compute it from reading.logits, without detaching")
    return torch.autograd.grad(value, of, retain_graph=again, allow_unused=True, materialize_grads=True)


def gradient(step: Step, embeddings: Tensor) -> Tensor:
    """Return the derivative of a step's value at embeddings, each row at its own: [B, T, D] -> [B, T, D]."""

    def at(some: Tensor) -> Tensor:
        some = some.detach().requires_grad_()
        return derivatives(step.value(some).sum(), [some])[0]

    return in_parts(step, embeddings, at)


def saliency(steps: Sequence[Step]) -> list[Tensor]:
    """Return the gradients themselves, [T, D] for each step, from one forward pass: a token does not see later ones.

    Simonyan et al. 2013 (arXiv:1312.6034), there without the sign.
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
    """Return the gradients integrated from a baseline to the text, times their difference, [T, D].

    Sundararajan et al. 2017 (arXiv:1703.01365), equation 1, by Gauss-Legendre quadrature. The scores of a step add up
    to the change of its value; the step's detail ``delta`` is by how much they miss it.

    Args:
        step: the step.
        n_steps: points on the way.
        baseline: where the way begins, see ``Step.baseline``. Near ``zero`` the gradients of models with RMS norms
            change fast: see ``delta``.

    Raises:
        InputError: for no points, or a wrong baseline.
    """
    check_count("n_steps", n_steps)
    x, start = step.embeddings, step.baseline(baseline)
    total: Tensor | float = 0.0
    for shares, weights in quadrature(n_steps, step.batch_size, x):
        total += (weights * gradient(step, (start + shares * (x - start)).to(x))).sum(0)
    scores = (x - start)[0] * total
    with torch.no_grad():
        end, begin = in_parts(step, torch.cat([x, start]), step.value)
    step.details["delta"] = (scores.sum() - (end - begin)).item()
    return scores


def quadrature(n_points: int, batch_size: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the points of Gauss-Legendre quadrature on [0, 1] and their weights, each in batches of [B, 1, 1].

    Args:
        n_points: how many.
        batch_size: so many at once.
        like: a tensor on the wanted device; they are of its dtype, float32 at least.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_points)  # on [-1, 1]
    both = torch.tensor(np.stack([(nodes + 1) / 2, weights / 2]))[:, :, None, None]
    both = both.to(like.device, torch.promote_types(like.dtype, torch.float32))
    yield from zip(*(of.split(batch_size) for of in both), strict=True)


def gradient_shap(
    step: Step, *, n_samples: int = 20, noise: float = 0.0, baseline: Baseline = "zero", seed: int = 0
) -> Tensor:
    """Return the expected gradient between a baseline and the text, times their difference, [T, D].

    Lundberg and Lee 2017 (arXiv:1705.07874); expected gradients of Erion et al. 2019 (arXiv:1906.10670), equation 4,
    with one baseline. Each sample is taken at a uniformly drawn place on the way.

    Args:
        step: the step.
        n_samples: N, places that are drawn.
        noise: standard deviation of Gaussian noise on the embeddings of each sample.
        baseline: where the ways begin, see ``Step.baseline``.
        seed: of the draws; each step sees the same places.

    Raises:
        InputError: for no samples, negative noise, or a wrong baseline.
    """
    check_count("n_samples", n_samples)
    if noise < 0:
        raise InputError(f"noise is {noise}; a standard deviation is not below 0")
    x, start = step.embeddings, step.baseline(baseline)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    shares = torch.rand(n_samples, 1, 1, generator=generator)
    total = torch.zeros_like(x[0])
    for some in shares.to(x).split(step.batch_size):
        # One by one, so that batches of any size draw the same.
        drawn = torch.cat([torch.randn(x.shape, generator=generator) for _ in some])  # [B, T, D]
        difference = x + noise * drawn.to(x) - start
        total += (difference * gradient(step, start + some * difference)).sum(0)
    return total / n_samples


def deeplift(step: Step, *, baseline: Baseline = "zero") -> Tensor:
    """Return DeepLIFT's contributions by the rescale rule, [T, D]; Shrikumar et al. 2017 (arXiv:1704.02685), 3.5.1.

    As a modified gradient (Ancona et al. 2018, arXiv:1711.06104): the MLPs' activations pass on the slope between text
    and baseline in place of their derivative; attention, norms and products pass on their derivatives, so that the
    scores do not add up exactly.

    Args:
        step: the step.
        baseline: what the text is held against, see ``Step.baseline``.

    Raises:
        InputError: for a wrong baseline.
    """
    both = torch.cat([step.embeddings, step.baseline(baseline)]).requires_grad_()  # [2, T, D]
    with rescaled(step.model):
        (found,) = at_once(step, lambda: derivatives(step.value(both)[0], [both]))
    x, start = both.detach()
    return (x - start) * found[0]


@contextmanager
def rescaled(model: PreTrainedModel) -> Iterator[None]:
    """Let the MLPs' activations pass back slopes, for passes whose second half of rows is the baseline of the first."""
    anatomy = anatomy_of(model)
    path = anatomy.parts.activation
    # A module that layers share is hooked once.
    modules = {id(module): module for module in (layer.get_submodule(path) for layer in anatomy.layers)}
    with ExitStack() as stack:
        for module in modules.values():
            stack.callback(module.register_forward_hook(only_in_this_thread(_rescale)).remove)
        yield


def _rescale(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    x, start = args[0].chunk(2)
    y, y_start = output.chunk(2)
    difference = (x - start).detach()
    near = difference.abs() < _SAME
    # Filled, because a slope that is not taken would still make NaN of its gradient: 0 * inf.
    slope = (y - y_start).detach() / difference.masked_fill(near, 1)
    straight = y.detach() + slope * (x - x.detach())
    return torch.cat([torch.where(near, y, straight), y_start])


def check_count(name: str, count: int) -> None:
    """Raise an InputError for a count that is not positive."""
    if count < 1:
        raise InputError(f"{name} is {count}; give at least 1")
