"""Replace, delete or reorder the layers of a model inside a ``with`` block.

If deleting or moving a layer hardly changes the outputs, the layer contributes little. The model's own list of layers
is changed, so inside the block, hooks, KV caches and ``generate`` number the layers by their new positions. Where some
layers attend to a sliding window (Qwen 2, Gemma), a layer keeps its window when it is moved. GPT-2's option to scale
attention by the layer index uses the new index up to transformers 4; from version 5 on, the scale is fixed when a layer
is built and moves with it. The change affects other threads, too. Shapes: L layers, D hidden width.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from interpret.activations.edits import check_index
from interpret.anatomy import anatomy_of, kind_of_layer, numbered, text_configs, unwrapping
from interpret.anatomy.changes import Changes
from interpret.errors import InputError
from interpret.prompts.selectors import indices


@unwrapping
@contextmanager
def replaced_layers(model: PreTrainedModel, replacements: Mapping[int, int | nn.Module]) -> Iterator[None]:
    """Replace layers inside a ``with`` block, then restore the model's own.

    A module that is used at several positions is copied with shared weights, so that each position can be hooked and
    edited separately; earlier hooks on the module apply at its original position only.

    Args:
        model: a causal LM of a supported family, or its base model.
        replacements: layer -> its replacement: the index of a layer of this model, or a module with the same call
            signature, such as a layer of another model of the same width.

    Raises:
        InputError: for a layer outside the model, a replacement that is neither an index nor a module, or if there are
            no replacements.

    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=3, n_head=2)).eval()
    >>> with replaced_layers(model, {0: 2}):
    ...     _ = model.generate(torch.tensor([[3, 1]]), max_new_tokens=2, pad_token_id=0)
    """
    stock = list(anatomy_of(model).layers)
    _check_some(replacements)
    standing = list(stock)
    for layer, new in replacements.items():
        check_index("layer", layer, len(stock))
        if isinstance(new, int):
            check_index("layer", new, len(stock))
        elif not isinstance(new, nn.Module):
            raise InputError(f"layer {layer}: give the index of another layer, or a module, not {new!r}")
        standing[layer] = stock[new] if isinstance(new, int) else new
    with _standing(model, _apart(standing, stock)):
        yield


@unwrapping
@contextmanager
def deleted_layers(model: PreTrainedModel, layers: str | int | Sequence[int]) -> Iterator[None]:
    """Delete layers inside a ``with`` block, so that their input is passed on unchanged; then restore them.

    Args:
        model: a causal LM of a supported family, or its base model.
        layers: the layers to delete: an index, a list, or a selector such as ``"0:20:5"``; later layers move up, as in
            a model that was built without these.

    Raises:
        InputError: for a layer outside the model or named twice, or if all layers or none are named.
    """
    stock = list(anatomy_of(model).layers)
    chosen = indices("layer", layers, len(stock))
    _check_some(chosen)
    for layer, times in Counter(chosen).items():
        check_index("layer", layer, len(stock))
        if times > 1:
            raise InputError(f"layer {layer} is named {times} times: name each once")
    if len(chosen) == len(stock):
        raise InputError(f"all {len(stock)} layers are named: a model needs at least one")
    with _standing(model, [module for layer, module in enumerate(stock) if layer not in chosen]):
        yield


@unwrapping
@contextmanager
def permuted_layers(model: PreTrainedModel, order: Sequence[int]) -> Iterator[None]:
    """Run the layers in another order inside a ``with`` block; then restore their order.

    Args:
        model: a causal LM of a supported family, or its base model.
        order: [L], the layers in the order in which they run.

    Raises:
        InputError: if a layer is missing, named twice, or outside the model.
    """
    stock = list(anatomy_of(model).layers)
    if sorted(order) != list(range(len(stock))):
        raise InputError(f"order is {list(order)}: name each of the layers 0 to {len(stock) - 1} once")
    with _standing(model, [stock[layer] for layer in order]):
        yield


def _check_some(layers: Mapping[int, object] | Sequence[int]) -> None:
    if not layers:
        raise InputError("layers is empty: name at least one layer")


def _apart(standing: Sequence[nn.Module], stock: Sequence[nn.Module]) -> list[nn.Module]:
    """Replace repetitions of a module by copies with shared weights; at its own position, the module itself is kept."""
    taken = {id(module) for module, own in zip(standing, stock, strict=True) if module is own}
    apart = []
    for module, own in zip(standing, stock, strict=True):
        apart.append(_twin(module) if module is not own and id(module) in taken else module)
        taken.add(id(module))
    return apart


def _twin(module: nn.Module) -> nn.Module:
    """Return a copy of a module without hooks, whose parameters and buffers are the same objects."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        memo |= {id(value): type(value)() for name, value in vars(part).items() if "_hooks" in name}
    return deepcopy(module, memo)


@contextmanager
def _standing(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Make a model run these layers inside the block, each with the index of its new position."""
    anatomy = anatomy_of(model)
    stock = list(anatomy.layers)
    configs = text_configs(model)
    counts = [(config, config.num_hidden_layers) for config in configs if hasattr(config, "num_hidden_layers")]
    kinds = [(config, config.layer_types) for config in configs if getattr(config, "layer_types", None) is not None]
    numbers = [(part, place, part.layer_idx) for place, layer in enumerate(layers) for part in numbered(layer)]

    def put_back() -> None:
        for part, _, number in numbers:
            part.layer_idx = number
        for config, count in counts:
            config.num_hidden_layers = count
        for config, own in kinds:
            config.layer_types = own
        _put(anatomy.layers, stock)

    with Changes() as change, change:
        change.undo(put_back)
        _put(anatomy.layers, layers)
        for config, _ in counts:
            config.num_hidden_layers = len(layers)
        for config, own in kinds:
            # A layer without a type gets the type of the layer it replaces.
            config.layer_types = [kind_of_layer(layer) or own[place] for place, layer in enumerate(layers)]
        for part, place, _ in numbers:
            part.layer_idx = place
        yield


def _put(place: Any, layers: Sequence[nn.Module]) -> None:
    """Set the content of a module list, in place; it may be incomplete, after an interrupt."""
    place._modules.clear()
    place.extend(layers)
