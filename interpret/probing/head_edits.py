"""Models with some attention heads ablated, patched or merged, inside a ``with`` block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.activations.edits import Edit, check_index, editing
from interpret.anatomy import anatomy_of
from interpret.errors import InputError
from interpret.probing.heads import Head, check_heads, head_outputs


@contextmanager
def ablated_heads(model: PreTrainedModel, heads: Sequence[Head], *, mean_of: Tensor | None = None) -> Iterator[None]:
    """Silence heads in every pass the calling thread makes in the block; then leave no trace.

    Args:
        model: a causal LM of a known family.
        heads: layer and number of each.
        mean_of: token ids, [B, T] without padding: a head says at every token the mean of what it says at all of
            these; without them, what it says is 0.

    Raises:
        InputError: for a layer or head outside the model.
    """
    by_layer = check_heads(model, heads)
    means: dict[int, Tensor] = {}
    if mean_of is not None:
        said = head_outputs(model, mean_of, layers=list(by_layer))
        means = {layer: value.float().mean(dim=(0, 1)).to(value.dtype) for layer, value in said.items()}  # [H, W]

    def silence(layer: int) -> Edit:
        def edit(value: Tensor, start: int) -> Tensor:
            parted = value.unflatten(-1, (model.config.num_attention_heads, -1)).clone()  # [B, T, H, W]
            parted[:, :, by_layer[layer]] = means[layer][by_layer[layer]].to(parted) if means else 0.0
            return parted.flatten(-2)

        return edit

    with editing(model, _at_heads(model, by_layer, silence)):
        yield


@contextmanager
def patched_heads(
    model: PreTrainedModel,
    heads: Sequence[Head],
    source_ids: Tensor,
    source_mask: Tensor | None = None,
    *,
    columns: Sequence[int] | None = None,
) -> Iterator[None]:
    """Let heads say what they say in another run, in every pass the calling thread makes in the block.

    Args:
        model: a causal LM of a known family.
        heads: layer and number of each.
        source_ids: [B, T], token ids of the other run; one row serves all rows, else row b serves row b.
        source_mask: [B, T], 0 at padding.
        columns: where; at all columns of the source if None. Columns count from 0, padding included.

    Raises:
        InputError: for a layer or head outside the model, a column outside the source, or, in the pass, other rows.
    """
    by_layer = check_heads(model, heads)
    n_columns = source_ids.shape[1]
    for column in columns or ():
        check_index("column", column, n_columns, "the source")
    wanted = list(range(n_columns) if columns is None else columns)
    said = head_outputs(model, source_ids, source_mask, layers=list(by_layer))

    def patch(layer: int) -> Edit:
        def edit(value: Tensor, start: int) -> Tensor:
            if len(source_ids) not in (1, len(value)):
                raise InputError(
                    f"the source has {len(source_ids)} rows and the pass {len(value)}: give one, or as many"
                )
            parted = value.unflatten(-1, (model.config.num_attention_heads, -1)).clone()  # [B, T, H, W]
            for column in wanted:
                if start <= column < start + value.shape[1]:
                    parted[:, column - start, by_layer[layer]] = said[layer][:, column, by_layer[layer]].to(parted)
            return parted.flatten(-2)

        return edit

    with editing(model, _at_heads(model, by_layer, patch)):
        yield


@contextmanager
def merged_heads(model: PreTrainedModel, merges: Mapping[Head, tuple[int, float]]) -> Iterator[None]:
    """Blend what heads say with what others of their layers say, in every pass the calling thread makes in the block.

    Head a says ``(1 - alpha) * z_a + alpha * z_b``, z being what the heads say before the output projection and before
    any merge; so a's own part of that projection writes the blend, and b goes on as it is.

    Args:
        model: a causal LM of a known family.
        merges: layer and number of head a -> number of head b of the same layer, and alpha. At alpha 0 nothing
            changes, at 1 head a says what b says.

    Raises:
        InputError: for a layer or head outside the model, alpha outside 0 to 1, or no merge at all.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2)).eval()
    >>> with merged_heads(model, {(1, 0): (1, 0.5)}):
    ...     _ = model(torch.tensor([[3, 1, 4]]))
    """
    by_layer = check_heads(model, list(merges))
    for (layer, head), (other, alpha) in merges.items():
        check_index("head", other, model.config.num_attention_heads)
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha of layer {layer}, head {head} is {alpha}: give 0 to 1")

    def merge(layer: int) -> Edit:
        def edit(value: Tensor, start: int) -> Tensor:
            parted = value.unflatten(-1, (model.config.num_attention_heads, -1))  # [B, T, H, W]
            merged = parted.clone()
            for head in by_layer[layer]:
                other, alpha = merges[layer, head]
                merged[:, :, head] = torch.lerp(parted[:, :, head], parted[:, :, other], alpha)
            return merged.flatten(-2)

        return edit

    with editing(model, _at_heads(model, by_layer, merge)):
        yield


def _at_heads(
    model: PreTrainedModel, layers: Mapping[int, object], edit: Callable[[int], Edit]
) -> dict[tuple[int, str], Edit]:
    return {(layer, anatomy_of(model).parts.attention_out): edit(layer) for layer in layers}
