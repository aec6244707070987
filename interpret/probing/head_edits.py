"""Ablate, patch or merge attention heads inside a ``with`` block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.activations.edits import Edit, UnitSite, check_index, editing
from interpret.anatomy import text_config, unwrapping
from interpret.errors import InputError
from interpret.probing.heads import Head, check_heads, head_outputs


@unwrapping
@contextmanager
def ablated_heads(model: PreTrainedModel, heads: Sequence[Head], *, mean_of: Tensor | None = None) -> Iterator[None]:
    """Ablate heads in every forward pass of the calling thread inside the ``with`` block.

    Args:
        model: a causal LM of a supported family.
        heads: (layer, head) pairs.
        mean_of: token ids, [B, T] without padding, for mean ablation: at every token, a head's output is replaced by
            its mean over all these tokens. If None, its output is replaced by 0.

    Raises:
        InputError: for a layer or head outside the model.
    """
    by_layer = check_heads(model, heads)
    means: dict[int, Tensor] = {}
    if mean_of is not None:
        outputs = head_outputs(model, mean_of, layers=list(by_layer))
        means = {layer: value.float().mean(dim=(0, 1)).to(value.dtype) for layer, value in outputs.items()}  # [H, W]

    def ablate(layer: int) -> Edit:
        def edit(value: Tensor, start: int) -> Tensor:
            by_head = value.unflatten(-1, (text_config(model).num_attention_heads, -1)).clone()  # [B, T, H, W]
            by_head[:, :, by_layer[layer]] = means[layer][by_layer[layer]].to(by_head) if means else 0.0
            return by_head.flatten(-2)

        return edit

    with editing(model, _at_heads(by_layer, ablate)):
        yield


@unwrapping
@contextmanager
def patched_heads(
    model: PreTrainedModel,
    heads: Sequence[Head],
    source_ids: Tensor,
    source_mask: Tensor | None = None,
    *,
    columns: Sequence[int] | None = None,
) -> Iterator[None]:
    """Patch the outputs of heads from another run, in every forward pass of the calling thread inside the block.

    Args:
        model: a causal LM of a supported family.
        heads: (layer, head) pairs.
        source_ids: [B, T], token ids of the other run, the source. A single row is used for all rows of a pass;
            otherwise row b is used for row b.
        source_mask: [B, T], 0 at padding.
        columns: the columns to patch, counted from 0 with padding; all columns of the source if None.

    Raises:
        InputError: for a layer or head outside the model, or a column outside the source; in a forward pass, if it has
            another number of rows.
    """
    by_layer = check_heads(model, heads)
    n_columns = source_ids.shape[1]
    for column in columns or ():
        check_index("column", column, n_columns, "the source")
    wanted = list(range(n_columns) if columns is None else columns)
    outputs = head_outputs(model, source_ids, source_mask, layers=list(by_layer))

    def patch(layer: int) -> Edit:
        def edit(value: Tensor, start: int) -> Tensor:
            if len(source_ids) not in (1, len(value)):
                raise InputError(
                    f"the source has {len(source_ids)} rows and the forward pass {len(value)}: give one row, or as many"
                )
            by_head = value.unflatten(-1, (text_config(model).num_attention_heads, -1)).clone()  # [B, T, H, W]
            for column in wanted:
                if start <= column < start + value.shape[1]:
                    source = outputs[layer][:, column, by_layer[layer]]
                    by_head[:, column - start, by_layer[layer]] = source.to(by_head)
            return by_head.flatten(-2)

        return edit

    with editing(model, _at_heads(by_layer, patch)):
        yield


@unwrapping
@contextmanager
def merged_heads(model: PreTrainedModel, merges: Mapping[Head, tuple[int, float]]) -> Iterator[None]:
    """Blend the outputs of heads with those of other heads of the same layer, inside the ``with`` block.

    The output of head a becomes ``(1 - alpha) * z_a + alpha * z_b``, where z are the outputs of the heads before the
    output projection and before any merge. The slice of the projection that belongs to a writes the blend; the output
    of b is not changed by this. Applies to every forward pass of the calling thread.

    Args:
        model: a causal LM of a supported family.
        merges: (layer, head a) -> (head b of the same layer, alpha). With alpha 0 nothing changes; with alpha 1 head a
            has the output of head b.

    Raises:
        InputError: for a layer or head outside the model, alpha outside 0 to 1, or no merge at all.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2)).eval()
    >>> with merged_heads(model, {(1, 0): (1, 0.5)}):
    ...     _ = model(torch.tensor([[3, 1, 4]]))
    """
    by_layer = check_heads(model, list(merges))
    for (layer, head), (other, alpha) in merges.items():
        check_index("head", other, text_config(model).num_attention_heads)
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha of layer {layer}, head {head} is {alpha}: give 0 to 1")

    def merge(layer: int) -> Edit:
        def edit(value: Tensor, start: int) -> Tensor:
            by_head = value.unflatten(-1, (text_config(model).num_attention_heads, -1))  # [B, T, H, W]
            merged = by_head.clone()
            for head in by_layer[layer]:
                other, alpha = merges[layer, head]
                merged[:, :, head] = torch.lerp(by_head[:, :, head], by_head[:, :, other], alpha)
            return merged.flatten(-2)

        return edit

    with editing(model, _at_heads(by_layer, merge)):
        yield


def _at_heads(layers: Mapping[int, object], edit: Callable[[int], Edit]) -> dict[tuple[int, UnitSite], Edit]:
    return {(layer, "heads"): edit(layer) for layer in layers}
