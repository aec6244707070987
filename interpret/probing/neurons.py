"""MLP neurons: their input weights, their activations on texts, and edits of their activations.

The activation of a neuron is an input of the MLP's down projection: ``activation(up)``, or ``activation(gate) * up`` in
a gated MLP. In a mixture of experts, it is multiplied by the routing weight of the neuron's expert, and the neurons of
all experts are numbered in one sequence (``expert_of``, ``neuron_of``).
Shapes: B texts, T tokens, F neurons of a layer, D hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from interpret.activations.edits import check_index, editing
from interpret.anatomy import (
    Anatomy,
    NeuronNumbers,
    anatomy_of,
    batches,
    check_insides,
    check_length,
    input_device,
    neuron_numbers,
    unwrapping,
)
from interpret.anatomy.changes import Changes
from interpret.anatomy.neurons import hook_neurons, mixture_in
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError, UnsupportedModelError, unknown
from interpret.prompts.batches import pad
from interpret.prompts.encoding import Encoding, encode, given_ids
from interpret.work.progress import counted

Token = int | Literal["last", "mean", "max"]
"""Where a neuron is read: at the last token, or as the mean or maximum over all tokens, each without the special tokens
that the tokenizer adds; or at one position, from 0 with special tokens included, or from -1 backwards."""
CHOICES = ("last", "mean", "max")
Text = str | Sequence[int] | Tensor
"""A text, or its token ids, which may be a tensor [T] or [1, T]."""


def plain_weight(module: nn.Module, name: str) -> Tensor:
    """Return the weight of a linear layer as [out, in], also for Conv1D, which stores it transposed.

    Raises:
        UnsupportedModelError: for a quantised or adapted layer, which has no plain weight.
    """
    if type(module) in (nn.Linear, Conv1D):
        weight = module.get_parameter("weight").detach()
        return weight if type(module) is nn.Linear else weight.t()
    raise UnsupportedModelError(
        f"{name} is of type {type(module).__name__}, not a plain linear layer: load the model unquantised, "
        "and merge or remove adapters"
    )


def reading_weights(model: PreTrainedModel, layer: int) -> Tensor:
    """Return the input weights of each neuron, [F, D] float32, each row of unit length.

    A gated neuron has two weight vectors: its row contains both, each of length ``1 / sqrt(2)``, [F, 2 * D].

    Raises:
        InputError: for a layer outside the model.
        UnsupportedModelError: if the weights are quantised or adapted, or the row of the family names other ones.
    """
    check_insides(model)
    check_index("layer", layer, len(anatomy_of(model).layers))
    weights = _input_weights(anatomy_of(model), layer)
    n_neurons, width = weights[0].shape
    unit = torch.empty(n_neurons, len(weights) * width, dtype=torch.float32, device=weights[0].device)
    for part, weight in zip(unit.split(width, dim=1), weights, strict=True):
        part.copy_(weight)  # in place from here on: a layer of a large model is a gigabyte
        part.div_(part.norm(dim=1, keepdim=True).clamp_min_(1e-12).mul_(len(weights) ** 0.5))
    return unit


def _input_weights(anatomy: Anatomy, layer: int) -> list[Tensor]:
    """Return the one or two input weights of each neuron, [F, D] each."""
    if mixture := mixture_in(anatomy, layer):
        return mixture.input_weights(lambda module, path: plain_weight(module, f"layer {layer}: {path}"))
    parts = anatomy.neuron_parts
    paths = list(dict.fromkeys(path for path in (parts.up, parts.gate) if path))
    weights = [plain_weight(anatomy.layers[layer].get_submodule(path), f"layer {layer}: {path}") for path in paths]
    return list(weights[0].chunk(2)[::-1]) if parts.gate == parts.up else weights


def count_neurons(model: PreTrainedModel, layer: int) -> int:
    """Return F, the number of neurons of a layer.

    Raises:
        InputError: for a layer outside the model.
        UnsupportedModelError: if its neurons cannot be read.
    """
    return _numbers(model, layer).count


@unwrapping
def expert_of(model: PreTrainedModel, layer: int, neuron: int) -> tuple[str, int]:
    """Return the expert of a neuron of a mixture of experts, and the neuron's index in this expert.

    Args:
        model: a causal LM of a supported family.
        layer: index of the layer.
        neuron: number of the neuron in the layer, as in tables.

    Returns:
        The number of the expert as a text, ``"shared"`` for shared experts, "" in an MLP without experts; the index.

    Raises:
        InputError: for a layer or neuron outside the model.
        UnsupportedModelError: if the neurons of the layer cannot be read.
    """
    numbers = _numbers(model, layer)
    check_index("neuron", neuron, numbers.count, f"layer {layer}")
    return numbers.place(neuron)


@unwrapping
def neuron_of(model: PreTrainedModel, layer: int, expert: int | str, neuron: int) -> int:
    """Return the number in the layer of a neuron of an expert: the reverse of ``expert_of``.

    Args:
        model: a causal LM of a supported family.
        layer: index of the layer.
        expert: number of the expert, or ``"shared"``.
        neuron: index of the neuron in this expert.

    Raises:
        InputError: for a layer, expert or neuron outside the model.
        UnsupportedModelError: if the neurons of the layer cannot be read.
    """
    return _numbers(model, layer).number(expert, neuron)


def _numbers(model: PreTrainedModel, layer: int) -> NeuronNumbers:
    anatomy = anatomy_of(model)
    check_index("layer", layer, len(anatomy.layers))
    return neuron_numbers(anatomy, layer)


def neuron_values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    layers: Sequence[int],
    *,
    token: Token = "last",
    batch_size: int = 8,
) -> dict[int, Tensor]:
    """Return the activations of the neurons of some layers on texts: layer -> [B, F] float32 on the CPU.

    Args:
        model: a causal LM of a supported family; dropout is off.
        tokenizer: the model's tokenizer; the model also reads the special tokens it adds.
        texts: B texts, or their token ids.
        layers: the layers.
        token: where the neurons are read.
        batch_size: number of texts per forward pass.

    Raises:
        InputError: for a layer outside the model, a text without that token, or a batch size below 1.
    """
    for layer in layers:
        check_index("layer", layer, len(anatomy_of(model).layers))
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give at least 1")
    rows, weights = _read_at(tokenizer, texts, token)
    for text, row in zip(texts, rows, strict=True):
        check_length(model, f"the text that begins with {text[:40] if isinstance(text, str) else row[:10]!r}", len(row))
    values: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with torch.no_grad(), evaluating(model):
        for chosen in counted(list(batches(model, [len(row) for row in rows], batch_size))):
            for layer, value in _run(model, rows[chosen], layers, weights[chosen], token == "max").items():
                values[layer].append(value)
    return {layer: torch.cat(parts) for layer, parts in values.items()}


def check_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], token: Token) -> None:
    """Check that all texts have the token at which neurons are read.

    Raises:
        InputError: if a text does not; the message names it.
    """
    _read_at(tokenizer, texts, token)


def _read_at(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], token: Token
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the token ids of each text, and the weights of its tokens in the reading."""
    encoded = [encode(tokenizer, text) if isinstance(text, str) else _given(tokenizer, text) for text in texts]
    return [list(one.ids) for one in encoded], [_token_weights(one, token) for one in encoded]


def _given(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | Tensor) -> Encoding:
    """Return the encoding of a text that is given as token ids, which are all its own."""
    checked = given_ids(tokenizer, ids, "a text")
    return Encoding(tokenizer, str(list(checked)), checked, 0, 0, False, None)


def _token_weights(encoding: Encoding, token: Token) -> list[float]:
    """Return the weights of the tokens of a text: they sum to 1; for a maximum, each is 0 or 1."""
    text, own = encoding.text, [float(index >= encoding.n_opening) for index in range(len(encoding.ids))]
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
    """Run one batch and return the reading of each layer, [B, F]."""
    seen: dict[int, Tensor] = {}
    counted = torch.zeros(len(rows), max(len(row) for row in rows))  # [B, T]
    for row, own in zip(counted, weights, strict=True):
        row[: len(own)] = torch.tensor(own)

    def keep(layer: int, value: Tensor) -> None:
        here, value = counted.to(value.device), value.float()
        if maximum:
            read = value.masked_fill(here[..., None] == 0, -torch.inf).amax(dim=1)
        else:
            # Not 0 * value: what is infinite at a token that is not read must not give NaN.
            read = torch.einsum("bt,btf->bf", here, value.masked_fill(here[..., None] == 0, 0))
        seen[layer] = read.cpu()

    run_neurons(model, rows, layers, keep)
    return seen


def run_neurons(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], layers: Sequence[int], read: Callable[[int, Tensor], None]
) -> None:
    """Run B rows of token ids as one batch, and call ``read`` with the neuron activations of each layer.

    Args:
        model: a causal LM of a supported family.
        rows: token ids; padded on the right, so no token attends to padding.
        layers: the layers.
        read: is called with a layer and the activations of its neurons, [B, T, F]; T is the length of the longest row.
    """
    anatomy = anatomy_of(model)
    check_insides(model)
    batch = pad(rows, pad_id=0, side="right", device=input_device(model))

    def show(layer: int, value: Tensor) -> None:
        read(layer, value.view(*batch.input_ids.shape, value.shape[-1]))  # OPT's MLP has [B * T, F]

    with Changes() as change, change:
        for layer in layers:
            hook_neurons(change, anatomy, layer, partial(show, layer))
        anatomy.trunk(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


@contextmanager
def scaled_neuron(
    model: PreTrainedModel, neuron: tuple[int, int], scale: float, column: int | None = None
) -> Iterator[None]:
    """Multiply the activation of one neuron, in every forward pass of the calling thread inside the ``with`` block.

    Args:
        model: a causal LM of a supported family.
        neuron: layer and index of the neuron.
        scale: the factor: 0 ablates the neuron, 1 changes nothing.
        column: the column of the padded batch to edit, counted from 0 over the whole sequence, including the part in a
            KV cache; all columns if None.

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

    with editing(model, {(layer, "neurons"): edit}):
        yield
