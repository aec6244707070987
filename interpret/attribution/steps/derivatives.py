"""Derivatives of the values of all steps of a text, from one forward pass: a token does not attend to later ones.

If the model can be run part by part, derivatives are taken back through its parts (``engine.pullback``), those of
several steps side by side, and each through the tokens before its own step only. Other models are differentiated by
autograd, whose graph of the whole text is read once for each step. Shapes: G steps, B points, T tokens of the last
step's text, N of a group's longest text, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isqrt
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import batches, composition
from interpret.anatomy.passes import grad_mode
from interpret.attribution.steps.fitting import in_parts, summed
from interpret.attribution.steps.step import Step
from interpret.device import unless_too_large
from interpret.engine.pullback import DifferentiableRun, Slope, derivative, run_layers, takes_back
from interpret.engine.trunk import Trunk, check_trunk, trunk_of
from interpret.errors import InputError, UnsupportedModelError

Points = Callable[[slice], tuple[Tensor, Tensor]]
"""Some of the points at which gradients are taken -> their embeddings, [B, T, D], and the weights of the gradients."""
_ROWS_OF_A_PASS = 64
"""A pass back through the layers costs about as much as this many tokens more: its weights are read, its calls made."""
_MOST_TOKENS = 2048
"""More tokens side by side make products no faster."""
_CHECKED_TOKENS = 16
"""How many tokens of a text the check of a model's derivatives reads at most."""


def derivatives(value: Tensor, of: Sequence[Tensor], *, again: bool = False) -> tuple[Tensor, ...]:
    """Return the derivatives of a scalar with respect to tensors; zeros if it does not depend on one.

    Args:
        value: a scalar.
        of: tensors to differentiate with respect to.
        again: whether to keep the graph for another call.

    Raises:
        InputError: if the value has no autograd graph.
    """
    check_differentiable(value)
    return torch.autograd.grad(value, of, retain_graph=again, allow_unused=True, materialize_grads=True)


def check_differentiable(value: Tensor) -> None:
    """Raise an InputError if a value has no autograd graph."""
    if not value.requires_grad:
        raise InputError("the attributed function has no gradient: compute it from reading.logits, without detaching")


@dataclass(frozen=True)
class Rule:
    """How values are differentiated."""

    slope: Slope = derivative
    """Replaces the derivative of the activation functions of the MLPs."""
    hooks: Callable[[], AbstractContextManager[None]] = nullcontext
    """Returns a context in which autograd goes by the same rule in passes of the model."""
    n_rows: int | None = None
    """How many rows of a pass, the first ones, are differentiated; None for all."""


PLAIN = Rule()
"""Derivatives."""


def summed_gradients(steps: Sequence[Step], n_points: int, point: Points, rule: Rule = PLAIN) -> list[Tensor]:
    """Return for each step the weighted sum of its gradients at N points, [T, D] each.

    Args:
        steps: steps of one text, in order; the tokens of each step begin with those of the step before.
        n_points: N.
        point: (slice of the points) -> embeddings of the last step's text, [B, T, D], of which the other steps read
            the beginning, and the weights of their gradients, a shape that broadcasts to it.
        rule: how to differentiate.
    """
    found: list[Tensor] = []
    for some in sides(steps):
        found += summed(some[-1], n_points, partial(_summed, some, WayBack.of(some[-1]), point, rule))
    return found


def sides(steps: Sequence[Step]) -> list[Sequence[Step]]:
    """Return the steps in groups that one pass over the last one's text serves: all, but for longrope's limit."""
    return [steps[some] for some in batches(steps[-1].model, [len(step.ids) for step in steps], len(steps))]


def _summed(steps: Sequence[Step], way: "WayBack | None", point: Points, rule: Rule, some: slice) -> list[Tensor]:
    points, weights = point(some)
    points = points[:, : len(steps[-1].ids)]
    found = []
    for slope in gradients(steps, way, points, rule):
        weight = weights if weights.shape[1] == 1 else weights[:, : slope.shape[1]]
        found.append((weight * slope).sum(0))
    return found


def gradients(steps: Sequence[Step], way: "WayBack | None", points: Tensor, rule: Rule) -> Iterator[Tensor]:
    """Yield the gradient of each step at the points of its last step's text, [B, T, D]."""
    if way is None or steps[-1].room.checkpointing:
        return _by_autograd(steps, points, rule)
    return way.gradients(steps, points, rule)


def _by_autograd(steps: Sequence[Step], points: Tensor, rule: Rule) -> Iterator[Tensor]:
    """Yield the gradient of each step at some points, [B, T, D], from one graph."""
    last, embeddings = steps[-1], points.detach().requires_grad_()
    with rule.hooks():
        states = last.states(embeddings)
        for step in steps:
            T = len(step.ids)
            value = step.read(step.head(states[:, T - len(last.ids) - 1]), embeddings[:, :T])
            (slope,) = derivatives(value[: rule.n_rows].sum(), [embeddings], again=step is not last)
            yield slope[: rule.n_rows, :T]


def values(steps: Sequence[Step], points: Tensor) -> list[Tensor]:
    """Return the value of each step at some points of its last step's text, [B, T, D] -> [B] each."""
    found: list[Tensor] = []
    for some in sides(steps):
        of_side = in_parts(some[-1], points[:, : len(some[-1].ids)], partial(_values, some))  # [B, G]
        found += of_side.unbind(1)
    return found


def _values(steps: Sequence[Step], points: Tensor) -> Tensor:
    last = steps[-1]
    with grad_mode(False):
        states = last.states(points)
        read = (
            step.read(step.head(states[:, len(step.ids) - len(last.ids) - 1]), points[:, : len(step.ids)])
            for step in steps
        )
        return torch.stack(list(read), dim=1)


@dataclass(frozen=True)
class WayBack:
    """A model whose derivatives are taken back through its parts, for texts of up to T tokens."""

    trunk: Trunk

    @classmethod
    def of(cls, step: Step) -> "WayBack | None":
        """Return the way back for the text of a step; None if only autograd can differentiate this model."""
        if step.room.checkpointing or not step.one_trunk:
            return None
        return unless_too_large(partial(_way_back, step))

    def gradients(self, steps: Sequence[Step], points: Tensor, rule: Rule) -> Iterator[Tensor]:
        """Yield the gradient of each step at some points, [B, T, D]."""
        run = self.run(points, rule)
        for some in groups(steps, len(points)):
            at_last, direct = self.at_last(run, some, points, rule)
            *_, (_, at_first) = run.derivatives(at_last)
            at_points = self._at_embeddings(points, at_first)
            for step, at, more in zip(some, at_points, direct, strict=True):
                slope = at[:, : len(step.ids)]
                yield slope if more is None else slope + more

    def run(self, embeddings: Tensor, rule: Rule = PLAIN) -> DifferentiableRun:
        """Run the layers on the embeddings of B texts, [B, T, D]."""
        with grad_mode(False):
            entered = self.trunk.enter(embeddings)
        return run_layers(self.trunk, entered, slope=rule.slope)

    def at_last(
        self, run: DifferentiableRun, steps: Sequence[Step], embeddings: Tensor, rule: Rule = PLAIN
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the derivatives of the values of steps at the last layer's output, [G, B, N, D].

        Args:
            run: the run of B rows.
            steps: the steps.
            embeddings: [B or 1, T, D], of the text; used for further passes, such as the one over the foil's own text.
            rule: how to differentiate.

        Returns:
            The derivatives, and for each step those at the embeddings that do not come through the run, [B, T, D];
            None if there are none.
        """
        ends = [len(step.ids) - 1 for step in steps]
        with grad_mode(True), rule.hooks():
            states = run.last[:, ends].detach().requires_grad_()  # [B, G, D]
            logits = steps[-1].head(self.trunk.leave(states))
            read = [embeddings[:, : len(step.ids)].expand(len(states), -1, -1).detach() for step in steps]
            values = [
                step.read(logits[:, place], one.requires_grad_())[: rule.n_rows]
                for place, (step, one) in enumerate(zip(steps, read, strict=True))
            ]
            for value in values:
                check_differentiable(value)
            total = torch.stack([value.sum() for value in values]).sum()
            at_states, *direct = torch.autograd.grad(total, [states, *read], allow_unused=True)
        at_states = torch.zeros_like(states) if at_states is None else at_states
        at_last = run.last.new_zeros(len(steps), len(at_states[: rule.n_rows]), ends[-1] + 1, at_states.shape[-1])
        for place, end in enumerate(ends):
            at_last[place, :, end] = at_states[: rule.n_rows, place]
        return at_last, [None if one is None else one[: rule.n_rows] for one in direct]

    def _at_embeddings(self, points: Tensor, at_first: Tensor) -> Tensor:
        """Return the derivatives at the embeddings, for those at the first layer's input, both [G, B, N, D]."""
        G, B, N = at_first.shape[:3]
        with grad_mode(True):
            embeddings = points[:B, :N].expand(G, B, N, -1).flatten(0, 1).detach().requires_grad_()
            (found,) = torch.autograd.grad(self.trunk.enter(embeddings), embeddings, at_first.flatten(0, 1))
        return found.unflatten(0, (G, B))


def groups(steps: Sequence[Step], n_rows: int) -> Iterator[Sequence[Step]]:
    """Yield the steps in groups that are taken back side by side, each through the tokens of its longest text.

    More steps in a group mean fewer passes, but more tokens after the shorter steps' own, whose derivatives are zeros.
    """
    longest = n_rows * len(steps[-1].ids)
    size = max(1, min(isqrt(2 * _ROWS_OF_A_PASS // n_rows), _MOST_TOKENS // longest))
    for first in range(0, len(steps), size):
        yield steps[first : first + size]


_CHECKED: WeakKeyDictionary[PreTrainedModel, tuple[object, bool]] = WeakKeyDictionary()
"""Whether the derivatives that are taken back are autograd's, and what the model was made of at that time."""


def _way_back(step: Step) -> WayBack | None:
    try:
        trunk = trunk_of(step.model, len(step.ids))
        if not takes_back(step.model, trunk):
            return None
        run = WayBack(trunk).run(step.embeddings)
        with grad_mode(False):
            check_trunk(step.model, trunk, step.embeddings, run.last)
    except UnsupportedModelError:
        return None
    made = composition(step.model)
    if step.model not in _CHECKED or _CHECKED[step.model][0] != made:
        _CHECKED[step.model] = made, _is_autograds(step)
    return WayBack(trunk) if _CHECKED[step.model][1] else None


def _is_autograds(step: Step) -> bool:
    """Return whether the derivatives of a state of the text are those of autograd."""
    embeddings = step.embeddings[:, :_CHECKED_TOKENS]
    with grad_mode(True):
        whole = embeddings.detach().requires_grad_()
        state = step.states(whole)[:, -1]
        at_state = torch.linspace(-1, 1, state.shape[-1]).to(state).expand_as(state)
        (expected,) = torch.autograd.grad(state, whole, at_state)
    way = WayBack(trunk_of(step.model, embeddings.shape[1]))
    run = way.run(embeddings)
    with grad_mode(True):
        last = run.last[:, -1].detach().requires_grad_()
        (at_last,) = torch.autograd.grad(way.trunk.leave(last), last, at_state)
    at = run.last.new_zeros(1, *run.last.shape)
    at[0, :, -1] = at_last
    *_, (_, at_first) = run.derivatives(at)
    found = way._at_embeddings(embeddings, at_first)[0]
    return bool((found - expected).norm() <= 1e-3 * expected.norm())
