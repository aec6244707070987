"""Attention as attribution: where the heads look from the token before the one that is attributed.

What attention says is where a head reads, not what becomes of it (Jain and Wallace 2019, arXiv:1902.10186): scores are
weights between 0 and 1, without a sign, and the attributed function has no part in them.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from interpret.attribution.steps.step import Step
from interpret.errors import InputError, unknown

Selection = int | tuple[int, int] | list[int] | None
"""One index, a span (first, one past the last), a list of indices, or all; negative ones count from the end."""
HeadAggregate = Literal["mean", "max", "min", "single"]
HEAD_AGGREGATES = ("mean", "max", "min", "single")


def attention(
    step: Step,
    *,
    layers: Selection = -1,
    heads: Selection = None,
    aggregate_layers: HeadAggregate = "mean",
    aggregate_heads: HeadAggregate = "mean",
) -> Tensor:
    """Return how strongly the last token of the text looks at each token, [T]; of one layer's mean head they sum to 1.

    Heads are aggregated in each layer, then layers. Of a translation model these are its decoder's: cross-attention
    over the source, which sums to 1, and self-attention over what the decoder has read, which does so too.

    Args:
        step: the step.
        layers: which are read: a number, a span ``(first, one past the last)``, a list, or None for all.
        heads: as ``layers``; the same ones in each layer.
        aggregate_layers: ``mean``, ``max`` or ``min`` over them, token by token; ``single`` asserts there is one.
        aggregate_heads: as ``aggregate_layers``.

    Raises:
        InputError: for a layer or head that does not exist, an unknown aggregate, or ``single`` of several.
    """
    found = step.attentions()
    chosen = indices("layers", layers, len(found))
    # Only what is chosen is brought together: layers may lie on several devices.
    rows = [found[layer].to(step.embeddings.device, torch.float32) for layer in chosen]  # each [H, T]
    of_heads = torch.stack(rows)[:, indices("heads", heads, len(rows[0]))]
    of_layers = aggregated("aggregate_heads", aggregate_heads, of_heads, dim=1)
    return aggregated("aggregate_layers", aggregate_layers, of_layers, dim=0)


def indices(name: str, selection: Selection, count: int) -> list[int]:
    """Return what a selection means among ``count`` things, in order.

    >>> indices("layers", (0, 3), 12), indices("heads", -1, 4), indices("heads", [2, 0], 4), indices("layers", None, 2)
    ([0, 1, 2], [3], [2, 0], [0, 1])

    Raises:
        InputError: if one does not exist, or none is chosen.
    """
    chosen = _listed(name, selection, count)
    if not chosen:
        raise InputError(f"{name} is {selection}, which chooses none; give a number, a span (first, end) or a list")
    for index in chosen:
        if not -count <= index < count:
            raise InputError(f"{name} is {selection}, but {index} does not exist; there are 0 to {count - 1}")
    return [index % count for index in chosen]


def _listed(name: str, selection: Selection, count: int) -> Sequence[int]:
    if selection is None:
        return range(count)
    if isinstance(selection, bool) or not isinstance(selection, int | tuple | list):
        raise InputError(f"{name} is {selection!r}; give a number, a span (first, end), a list of numbers or None")
    listed = [selection] if isinstance(selection, int) else selection
    if not all(type(index) is int for index in listed):
        raise InputError(f"{name} is {selection!r}; its entries are whole numbers")
    if not isinstance(selection, tuple):
        return listed
    if len(selection) != 2:
        raise InputError(f"{name} is {selection}; a span is (first, one past the last); for single ones give a list")
    first, end = (index + count if index < 0 else index for index in selection)
    return range(first, end)


def aggregated(name: str, how: str, values: Tensor, dim: int) -> Tensor:
    """Reduce a dimension of attention weights.

    Raises:
        InputError: for an unknown way, or ``single`` of several.
    """
    if how not in HEAD_AGGREGATES:
        raise InputError(unknown(name, how, HEAD_AGGREGATES))
    if how == "single" and values.shape[dim] > 1:
        raise InputError(f"{name} is 'single', but {values.shape[dim]} are chosen; choose one, or use 'mean'")
    if how in ("mean", "single"):
        return values.mean(dim)
    return values.amax(dim) if how == "max" else values.amin(dim)
