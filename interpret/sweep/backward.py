"""Derivatives at the layers of a recorded run, optionally with modules held constant at the token itself.

A token attends to itself and to earlier tokens. So holding modules constant at token t does not change how later tokens
use its keys and values, and the derivative at the input of a layer has two parts:

    through the token itself + through the keys and values that later tokens read

Holding the outputs of modules constant at the token changes only the first part, which is local to a token and computed
for all tokens at once. To separate the parts, a layer is run with two copies of keys and values: each token takes its
own from the current pass (the diagonal of the attention), and those of the earlier tokens from the recorded run.
Letters are those of ``engine.layers``.
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
    """The derivatives at one layer, for some routes: S samples, T tokens."""

    layer: int
    outputs: dict[Route, Tensor]
    """With respect to the layer's output, [S, T, D]."""
    points: dict[tuple[Route, Point], Tensor]
    """With respect to the outputs of the modules that a route severs, [S, T, D]."""


def derivatives(
    layers: Sequence[Layer], run: RecordedRun, last: Tensor, routes: Iterable[Route]
) -> Iterator[Derivatives]:
    """Compute derivatives layer by layer, from the last layer to the first.

    Every layer is run again, with its own graph, which is freed before the next layer. Derivatives with respect to
    weights are not computed.

    Args:
        layers: the model's layers.
        run: a recorded run of S samples.
        last: [S, T, D], the derivative with respect to the last layer's output.
        routes: the routes to follow.

    Yields:
        One layer's derivatives, for the routes that include this layer.
    """
    whole, followed = last, dict[Route, Tensor]()
    for index in reversed(range(len(layers))):
        layer, x = layers[index], run.states[index]
        whole = whole.to(layer.device)
        followed |= {route: whole for route in routes if route.top == index + 1}
        outputs = {route: value.to(layer.device) for route, value in followed.items() if route.bottom <= index}
        step = _Step(layer, x.to(layer.device), run.past[index], mask_beside(x.shape[1], layer.window, x))
        whole, read_later = step.whole(whole)
        followed, points = dict[Route, Tensor](), dict[tuple[Route, Point], Tensor]()
        for severed in {route.severed for route in outputs}:
            some = {route: value for route, value in outputs.items() if route.severed == severed}
            if not severed:
                followed |= dict.fromkeys(some, whole)
                continue
            for route, through_itself, at_points in step.severed(severed, some):
                followed[route] = through_itself + read_later
                points |= {(route, point): value for point, value in at_points.items()}
        yield Derivatives(index, outputs, points)


def mask_beside(n_tokens: int, window: int | None, like: Tensor) -> Tensor:
    """Return the mask, [T, 2 T]: a token attends to earlier tokens in the recorded run, and to itself in this pass."""
    seen = mask_for(n_tokens, 0, window, like)
    diagonal = torch.eye(n_tokens, dtype=torch.bool, device=like.device)
    hidden = float("-inf")
    return torch.cat([seen.masked_fill(diagonal, hidden), seen.masked_fill(~diagonal, hidden)], dim=1)


@dataclass(frozen=True)
class _Step:
    """One layer, run again on its recorded input."""

    layer: Layer
    x: Tensor
    """[S, T, D]."""
    past: Past
    """Its recorded keys and values."""
    mask: Tensor

    def whole(self, at_output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivative at the input, and its part through the keys and values that later tokens read."""
        x, keys, values = (_variable(part) for part in (self.x, self.past.keys, self.past.values))
        with grad_mode(True):
            output, own = self._run(x, Past(keys, values), Untapped())
            through_itself, *read = torch.autograd.grad(output, (x, keys, values), at_output, retain_graph=True)
            (read_later,) = torch.autograd.grad((own.keys, own.values), x, read)
        return through_itself + read_later, read_later

    def severed(
        self, points: frozenset[Point], at_output: dict[Route, Tensor]
    ) -> Iterator[tuple[Route, Tensor, dict[Point, Tensor]]]:
        """Yield, for each route, the derivative through the token itself and those at the severed outputs."""
        x, cut = _variable(self.x), _Cut(points)
        with grad_mode(True):
            output, _ = self._run(x, self.past, cut)
        for route, value in at_output.items():
            own, *at_points = torch.autograd.grad(output, (x, *cut.outputs.values()), value, retain_graph=True)
            yield route, own, {point: part[0] for point, part in zip(cut.outputs, at_points, strict=True)}

    def _run(self, x: Tensor, past: Past, tap: Untapped) -> tuple[Tensor, Past]:
        context = Context(past, self.mask.to(x.device), slice(0, x.shape[1]))
        output, own = run_layer(self.layer, x[None], context, tap)
        return output[0], own


def _variable(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


@dataclass(frozen=True)
class _Cut(Untapped):
    """Makes the outputs of modules constants."""

    points: frozenset[Point]
    outputs: dict[Point, Tensor] = field(default_factory=dict)
    """[1, S, T, D] each; derivatives can be taken with respect to them."""

    def taps(self, point: Point) -> bool:
        return point in self.points

    def at(self, point: Point, value: Tensor) -> Tensor:
        if point not in self.points:
            return value
        self.outputs[point] = _variable(value)
        return self.outputs[point]
