"""States and keys and values of a run, recorded in all layers, for reuse by runs with the same prefix."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from interpret.engine.layers import Context, Layer, Past, Point, Untapped, run_layer
from interpret.engine.masks import masks_for


@dataclass(frozen=True)
class RecordedRun:
    """The record of a run of S samples and T tokens."""

    states: list[Tensor]
    """L + 1 tensors [S, T, D]: the input of each layer, and the output of the last layer."""
    past: list[Past]
    """Keys and values of each layer, [S, G, T, W]."""
    points: dict[Point, list[Tensor]]
    """The values at the requested points of each layer, [S, T, width]."""

    def of(self, samples: slice) -> "RecordedRun":
        """Return the record of some samples, without a copy; a run of one sample is returned whole, to serve all."""
        if len(self.states[0]) == 1:
            return self
        return RecordedRun(
            [state[samples] for state in self.states],
            [Past(past.keys[samples], past.values[samples]) for past in self.past],
            {point: [value[samples] for value in values] for point, values in self.points.items()},
        )


def record_run(layers: Sequence[Layer], start: Tensor, points: Collection[Point]) -> RecordedRun:
    """Run all layers on the input of the first, [S, T, D], and record states, keys, values and points."""
    n_tokens = start.shape[1]
    columns = slice(0, n_tokens)
    recorder = _Recorder({point: [] for point in points})
    states, pasts = [start], []
    masks = masks_for(layers, n_tokens, 0, start)
    for layer, mask in zip(layers, masks, strict=True):
        x = states[-1].to(layer.device)
        # As one cell of S samples.
        context = Context(_no_past(layer, x), mask.to(layer.device), columns)
        output, own = run_layer(layer, x[None], context, recorder)
        states.append(output[0])
        # Copied once here, because the runs that read them would otherwise copy them at each call.
        pasts.append(Past(own.keys.contiguous(), own.values.contiguous()))
    return RecordedRun(states, pasts, recorder.seen)


def _no_past(layer: Layer, x: Tensor) -> Past:
    empty = x.new_empty(len(x), layer.n_key_heads, 0, layer.head_width)
    return Past(empty, empty)


@dataclass(frozen=True)
class _Recorder(Untapped):
    """Records the values at the points."""

    seen: dict[Point, list[Tensor]]

    def taps(self, point: Point) -> bool:
        return point in self.seen

    def at(self, point: Point, value: Tensor) -> Tensor:
        if point in self.seen:
            self.seen[point].append(value[0])
        return value
