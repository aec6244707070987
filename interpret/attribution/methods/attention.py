"""Attention weights as attribution: what the heads attend to from the token before the attributed one.

Attention shows which tokens a head attends to, not their effect on the output (Jain and Wallace 2019,
arXiv:1902.10186): scores are weights between 0 and 1, without a sign, and do not depend on the attributed function.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from interpret.attribution.steps.step import Step
from interpret.errors import InputError, unknown
from interpret.prompts.selectors import select

Selection = int | tuple[int, int] | list[int] | str | None
"""An index, a span (first, one past the last), a list of indices, a selector such as ``"0:20:5"`` or ``"all"``, or None
for all; negative ones count from the end."""
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
    """Return how strongly the last token of the text attends to each token, [T].

    Heads are aggregated in each layer, then layers are aggregated. With ``mean`` for both, the weights sum to 1. For
    an encoder-decoder model the weights are those of the decoder: cross-attention over the source, which sums to 1, and
    self-attention over the tokens the decoder has read, which also sums to 1.

    Args:
        step: the step to attribute.
        layers: a layer number, a span ``(first, one past the last)``, a list, a selector such as ``"0:20:5"`` or
            ``"all"``, or None for all layers.
        heads: as ``layers``; the same heads in each layer.
        aggregate_layers: ``mean``, ``max`` or ``min`` over layers, for each token; ``single`` requires a single layer.
        aggregate_heads: as ``aggregate_layers``, over heads.

    Raises:
        InputError: for a layer or head that does not exist, an unknown aggregate, or ``single`` with several.
    """
    found = step.attentions()
    chosen = indices("layers", layers, len(found))
    # Layers may be on several devices; only the selected ones are moved to one.
    rows = [found[layer].to(step.embeddings.device, torch.float32) for layer in chosen]  # each [H, T]
    of_heads = torch.stack(rows)[:, indices("heads", heads, len(rows[0]))]
    of_layers = aggregated("aggregate_heads", aggregate_heads, of_heads, dim=1)
    return aggregated("aggregate_layers", aggregate_layers, of_layers, dim=0)


def indices(name: str, selection: Selection, count: int) -> list[int]:
    """Return the indices of a selection among ``count`` items, in the order given.

    >>> indices("layers", (0, 3), 12), indices("heads", -1, 4), indices("heads", [2, 0], 4), indices("layers", None, 2)
    ([0, 1, 2], [3], [2, 0], [0, 1])

    Raises:
        InputError: if an index does not exist, or none is selected.
    """
    chosen = _listed(name, selection, count)
    if not chosen:
        raise InputError(f"{name} is {selection}, which selects none; give a number, a span (first, end) or a list")
    for index in chosen:
        if not -count <= index < count:
            raise InputError(f"{name} is {selection}, but {index} does not exist; there are 0 to {count - 1}")
    return [index % count for index in chosen]


def _listed(name: str, selection: Selection, count: int) -> Sequence[int]:
    if selection is None:
        return range(count)
    if isinstance(selection, str):
        return select(name.removesuffix("s"), selection, count)
    if isinstance(selection, bool) or not isinstance(selection, int | tuple | list):
        given = f"a {type(selection).__name__}" if isinstance(selection, nn.Module) else repr(selection)
        raise InputError(f"{name} is {given}; give a number, a span (first, end), a list of numbers or None")
    listed = [selection] if isinstance(selection, int) else selection
    if not all(type(index) is int for index in listed):
        raise InputError(f"{name} is {selection!r}; its entries must be integers")
    if not isinstance(selection, tuple):
        return listed
    if len(selection) != 2:
        raise InputError(f"{name} is {selection}; a span is (first, one past the last); for single indices give a list")
    first, end = (index + count if index < 0 else index for index in selection)
    return range(first, end)


def aggregated(name: str, how: str, values: Tensor, dim: int) -> Tensor:
    """Reduce a dimension of attention weights.

    Raises:
        InputError: for an unknown aggregate, or ``single`` with several.
    """
    if how not in HEAD_AGGREGATES:
        raise InputError(unknown(name, how, HEAD_AGGREGATES))
    if how == "single" and values.shape[dim] > 1:
        raise InputError(f"{name} is 'single', but {values.shape[dim]} are selected; select one, or use 'mean'")
    if how in ("mean", "single"):
        return values.mean(dim)
    return values.amax(dim) if how == "max" else values.amin(dim)
