"""The neurons of the MLPs: what they read by, what they say at the tokens of texts, and saying something else.

What a neuron says enters the MLP's last projection: ``activation(up)``, or ``activation(gate) * up`` where there is a
gate. Shapes: B texts, T tokens, F neurons of a layer, D hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from interpret.activations.edits import check_index, editing
from interpret.anatomy import anatomy_of, input_device, layer_input
from interpret.anatomy.passes import evaluating, only_in_this_thread
from interpret.errors import InputError, UnsupportedModelError, unknown
from interpret.prompts.batches import pad

Token = int | Literal["last", "mean", "max"]
"""At which token a neuron is read: the last, the mean or the maximum over all tokens but those the tokenizer adds, or
one token, counted from 0 as the tokenizer gives them or from -1 backwards."""
CHOICES = ("last", "mean", "max")


def plain_weight(module: nn.Module, name: str) -> Tensor:
    """Return the weight of a linear layer as [out, in], whichever way round it keeps it.

    Raises:
        UnsupportedModelError: for a quantised or adapted layer, which keeps no plain weight.
    """
    if type(module) in (nn.Linear, Conv1D):
        weight = module.get_parameter("weight").detach()
        return weight if type(module) is nn.Linear else weight.t()
    raise UnsupportedModelError(
        f"{name} is a {type(module).__name__}: weights are read from plain linear layers. Load the model unquantised, "
        "and merge or remove adapters"
    )


def reading_weights(model: PreTrainedModel, layer: int) -> Tensor:
    """Return what each neuron reads its input by, [F, D] float32, each row of unit length.

    Neurons with a gate read twice: their rows hold both weights, each of length ``1 / sqrt(2)``, [F, 2 * D].

    Raises:
        InputError: for a layer outside the model.
        UnsupportedModelError: for quantised or adapted weights.
    """
    anatomy = anatomy_of(model)
    check_index("layer", layer, len(anatomy.layers))
    parts = anatomy.parts
    paths = list(dict.fromkeys(path for path in (parts.up, parts.gate) if path))
    weights = [plain_weight(anatomy.layers[layer].get_submodule(path), f"layer {layer}: {path}") for path in paths]
    if parts.gate == parts.up:
        weights = list(weights[0].chunk(2)[::-1])
    n_neurons, width = weights[0].shape
    unit = torch.empty(n_neurons, len(weights) * width, dtype=torch.float32, device=weights[0].device)
    for part, weight in zip(unit.split(width, dim=1), weights, strict=True):
        part.copy_(weight)  # in place from here on: a layer of a large model is a gigabyte
        part.div_(part.norm(dim=1, keepdim=True).clamp_min_(1e-12).mul_(len(weights) ** 0.5))
    return unit


def count_neurons(model: PreTrainedModel, layer: int) -> int:
    """Return F of a layer.

    Raises:
        InputError: for a layer outside the model.
    """
    anatomy = anatomy_of(model)
    check_index("layer", layer, len(anatomy.layers))
    up: Any = anatomy.layers[layer].get_submodule(anatomy.parts.up)
    outputs = int(up.nf if isinstance(up, Conv1D) else up.out_features)
    return outputs // 2 if anatomy.parts.gate == anatomy.parts.up else outputs


def neuron_values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    token: Token = "last",
    batch_size: int = 8,
) -> dict[int, Tensor]:
    """Return what the neurons of some layers say about texts, layer -> [B, F] float32 on the CPU, in one pass.

    Args:
        model: a causal LM of a known family; it is run without dropout.
        tokenizer: its own; the special tokens it adds are read by the model.
        texts: B of them.
        layers: which layers.
        token: at which token.
        batch_size: texts a forward pass.

    Raises:
        InputError: for a layer outside the model, a text without the token that is asked for, or an empty batch.
    """
    for layer in layers:
        check_index("layer", layer, len(anatomy_of(model).layers))
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give at least 1")
    rows, weights = _read_at(tokenizer, texts, token)
    values: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with torch.no_grad(), evaluating(model):
        for first in range(0, len(rows), batch_size):
            chosen = slice(first, first + batch_size)
            for layer, value in _run(model, rows[chosen], layers, weights[chosen], token == "max").items():
                values[layer].append(value)
    return {layer: torch.cat(parts) for layer, parts in values.items()}


def check_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], token: Token) -> None:
    """Refuse texts that do not have the token at which neurons are to be read.

    Raises:
        InputError: naming the text.
    """
    _read_at(tokenizer, texts, token)


def _read_at(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], token: Token
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the token ids of each text, and what each token counts for."""
    encoded = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
    weights = [
        _token_weights(text, one["special_tokens_mask"], token) for text, one in zip(texts, encoded, strict=True)
    ]
    return [one["input_ids"] for one in encoded], weights


def _token_weights(text: str, added: Sequence[int], token: Token) -> list[float]:
    """Return what each token of a text counts for: they sum to 1, or are 1 where a maximum is taken."""
    own = [float(not bit) for bit in added]
    if isinstance(token, str) and token not in CHOICES:
        raise InputError(unknown("token", token, [*CHOICES, "a position such as 0 or -1"]))
    if not any(own) or (isinstance(token, int) and not -len(own) <= token < len(own)):
        asked = f"token {token}" if isinstance(token, int) and any(own) else "token of its own"
        raise InputError(f"{text!r} has no {asked}: it is {len(own)} token{'s'[: len(own) != 1]} long")
    if token == "max":
        return own
    if token == "mean":
        return [one / sum(own) for one in own]
    at = (len(own) - 1 - own[::-1].index(1.0)) if isinstance(token, str) else token % len(own)
    return [float(index == at) for index in range(len(own))]


def _run(
    model: PreTrainedModel, rows: list[list[int]], layers: Sequence[int], weights: list[list[float]], maximum: bool
) -> dict[int, Tensor]:
    """Run one batch, and return what is read at each layer, [B, F]."""
    seen: dict[int, Tensor] = {}
    counted = torch.zeros(len(rows), max(len(row) for row in rows))  # [B, T]
    for row, own in zip(counted, weights, strict=True):
        row[: len(own)] = torch.tensor(own)

    def keep(layer: int, value: Tensor) -> None:
        here, value = counted.to(value.device), value.float()
        if maximum:
            read = value.masked_fill(here[..., None] == 0, -torch.inf).amax(dim=1)
        else:
            read = torch.einsum("bt,btf->bf", here, value)
        seen[layer] = read.cpu()

    run_neurons(model, rows, layers, keep)
    return seen


def run_neurons(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], layers: Sequence[int], read: Callable[[int, Tensor], None]
) -> None:
    """Run B rows of token ids side by side, and show what the neurons of some layers say while it is there.

    Args:
        model: a causal LM of a known family.
        rows: token ids; they are padded on the right, where no token sees the padding.
        layers: which layers.
        read: is called with each layer and what its neurons say, [B, T, F], T being the length of the longest row.
    """
    anatomy = anatomy_of(model)
    batch = pad(rows, pad_id=0, side="right", device=input_device(model))

    def show(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = layer_input(args, kwargs)
            read(layer, value.view(*batch.input_ids.shape, value.shape[-1]))  # OPT's are [B * T, F]

        return hook

    with ExitStack() as stack:
        for layer in layers:
            module = anatomy.layers[layer].get_submodule(anatomy.parts.down)
            hook = only_in_this_thread(show(layer))
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        anatomy.trunk(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


@contextmanager
def scaled_neuron(
    model: PreTrainedModel, neuron: tuple[int, int], scale: float, column: int | None = None
) -> Iterator[None]:
    """Multiply what one neuron says, in every pass the calling thread makes in the block; then leave no trace.

    Args:
        model: a causal LM of a known family.
        neuron: layer and number.
        scale: 0 silences the neuron, 1 changes nothing.
        column: at one column of the padded batch, counted from 0 through all of the sequence, also when a cache holds
            its beginning; at all of them if None.

    Raises:
        InputError: for a layer or neuron outside the model, or a column below 0.
    """
    layer, number = neuron
    check_index("neuron", number, count_neurons(model, layer), f"layer {layer}")
    if column is not None and column < 0:
        raise InputError(f"column {column}: give a column of the padded batch, counted from 0")

    def edit(value: Tensor, start: int) -> Tensor:
        value = value.clone()
        if column is None:
            value[..., number] *= scale
        elif start <= column < start + value.shape[1]:
            value[:, column - start, number] *= scale
        return value

    with editing(model, {(layer, anatomy_of(model).parts.down): edit}):
        yield
