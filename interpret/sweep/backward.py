"""Derivatives at the layers of a recorded run, optionally with modules held constant at the token itself.

A token attends to itself and to earlier tokens. So holding modules constant at token t does not change how later tokens
use its keys and values, and the derivative at the input of a layer has two parts:

    through the token itself + through the keys and values that later tokens read

Holding the outputs of modules constant at the token changes only the first part, which is local to a token and computed
for all tokens at once. To separate the parts, a layer is run with two copies of keys and values: each token takes its
own from the current pass (the diagonal of the attention), and those of the earlier tokens from the recorded run.
Derivatives are taken at the last N tokens; the tokens before them only lend their recorded keys and values. Other
letters are those of ``engine.layers``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interpret.anatomy.passes import grad_mode
from interpret.engine.layers import Context, Layer, Past, Point, Untapped, run_layer
from interpret.engine.masks import mask_for
from interpret.engine.recording import RecordedRun


@dataclass(frozen=True)
class Route:
    """A path of the derivative back through the layers, for each token separately."""

    severed: frozenset[Point]
    """The modules whose outputs are held constant at the token itself."""
    bottom: int
    """The first layer in which they are held constant; the route is followed down to this layer."""
    top: int
    """One past the last layer in which they are held constant."""


@dataclass(frozen=True)
class Derivatives:
    """The derivatives at one layer, for some routes: S samples, the last N tokens."""

    layer: int
    outputs: dict[Route, Tensor]
    """With respect to the layer's output, [S, N, D]."""
    points: dict[tuple[Route, Point], Tensor]
    """With respect to the outputs of the modules that a route severs, [S, N, width]."""
    values: dict[Point, Tensor]
    """The outputs of the modules that a route severs, [S, N, width]."""


def derivatives(
    layers: Sequence[Layer], run: RecordedRun, last: Tensor, routes: Iterable[Route]
) -> Iterator[Derivatives]:
    """Compute derivatives layer by layer, from the last layer to the first.

    Every layer is run again, with its own graph, which is freed before the next layer. Derivatives with respect to
    weights are not computed.

    Args:
        layers: the model's layers.
        run: a recorded run of S samples and T tokens.
        last: [S, N, D], the derivative with respect to the last layer's output at the last N tokens; those at the
            tokens before them are neither given nor computed.
        routes: the routes to follow.

    Yields:
        One layer's derivatives, for the routes that include this layer.
    """
    whole, followed = last, dict[Route, Tensor]()
    first = run.states[-1].shape[1] - last.shape[1]
    for index in reversed(range(len(layers))):
        layer, x = layers[index], run.states[index][:, first:]
        whole = whole.to(layer.device)
        followed |= {route: whole for route in routes if route.top == index + 1}
        outputs = {route: value.to(layer.device) for route, value in followed.items() if route.bottom <= index}
        step = _Step(layer, x.to(layer.device), run.past[index], mask_beside(x.shape[1], first, layer.window, x))
        whole, read_later = step.whole(whole)
        followed, points = dict[Route, Tensor](), dict[tuple[Route, Point], Tensor]()
        values = dict[Point, Tensor]()
        for severed in {route.severed for route in outputs}:
            some = {route: value for route, value in outputs.items() if route.severed == severed}
            if not severed:
                followed |= dict.fromkeys(some, whole)
                continue
            cut = _Cut(severed)
            for route, through_itself, at_points in step.severed(cut, some):
                followed[route] = through_itself + read_later
                points |= {(route, point): value for point, value in at_points.items()}
            values |= {point: value[0].detach() for point, value in cut.outputs.items()}
        yield Derivatives(index, outputs, points, values)


def mask_beside(n_tokens: int, first: int, window: int | None, like: Tensor) -> Tensor:
    """Return the mask of the N tokens from ``first`` on, [N, T + N].

    A token attends to earlier tokens in the recorded run, and to itself in this pass.
    """
    seen = mask_for(n_tokens, first, window, like)  # [N, T]
    itself = torch.eye(n_tokens, dtype=torch.bool, device=like.device)
    hidden = float("-inf")
    earlier, own = seen.clone(), seen[:, first:].masked_fill(~itself, hidden)
    earlier[:, first:].masked_fill_(itself, hidden)
    return torch.cat([earlier, own], dim=1)


@dataclass(frozen=True)
class _Step:
    """One layer, run again on its recorded input at the last N tokens."""

    layer: Layer
    x: Tensor
    """[S, N, D]."""
    past: Past
    """Its recorded keys and values, of all T tokens."""
    mask: Tensor

    def whole(self, at_output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivative at the input, and its part through the keys and values that later tokens read."""
        x, keys, values = (_variable(part) for part in (self.x, self.past.keys, self.past.values))
        with grad_mode(True):
            output, own = self._run(x, Past(keys, values), Untapped())
            # Nothing flows through the keys of a layer whose attention pattern is a constant (``engine.relevance``).
            through_itself, *read = torch.autograd.grad(
                output, (x, keys, values), at_output, retain_graph=True, materialize_grads=True
            )
            read = [part[:, :, self._first :] for part in read]
            (read_later,) = torch.autograd.grad((own.keys, own.values), x, read)
        return through_itself + read_later, read_later

    def severed(
        self, cut: "_Cut", at_output: dict[Route, Tensor]
    ) -> Iterator[tuple[Route, Tensor, dict[Point, Tensor]]]:
        """Yield, for each route, the derivative through the token itself and those at the severed outputs."""
        x = _variable(self.x)
        with grad_mode(True):
            output, _ = self._run(x, self.past, cut)
        for route, value in at_output.items():
            own, *at_points = torch.autograd.grad(output, (x, *cut.outputs.values()), value, retain_graph=True)
            yield route, own, {point: part[0] for point, part in zip(cut.outputs, at_points, strict=True)}

    @property
    def _first(self) -> int:
        """The first of the N tokens."""
        return self.past.keys.shape[2] - self.x.shape[1]

    def _run(self, x: Tensor, past: Past, tap: Untapped) -> tuple[Tensor, Past]:
        context = Context(past, self.mask.to(x.device), slice(self._first, self._first + x.shape[1]))
        output, own = run_layer(self.layer, x[None], context, tap)
        return output[0], own


def _variable(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


@dataclass(frozen=True)
class _Cut(Untapped):
    """Makes the outputs of modules constants."""

    points: frozenset[Point]
    outputs: dict[Point, Tensor] = field(default_factory=dict)
    """[1, S, N, D] each; derivatives can be taken with respect to them."""

    def taps(self, point: Point) -> bool:
        return point in self.points

    def at(self, point: Point, value: Tensor) -> Tensor:
        if point not in self.points:
            return value
        self.outputs[point] = _variable(value)
        return self.outputs[point]
