"""The calls of a model and of its layers: their arguments, and the modes that must hold while they run."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from interpret.errors import InputError


def longest_text(model: PreTrainedModel) -> int:
    """Return how many tokens a text may have; any number where positions are distances, as in Bloom."""
    return getattr(model.config, "max_position_embeddings", sys.maxsize)


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states [B, T, D] from the arguments of a layer's call."""
    return args[0] if args else kwargs["hidden_states"]


def with_layer_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a layer's call with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def first_column(arguments: Mapping[str, Any], n_tokens: int, past: int) -> int:
    """Return the absolute column of the first token a pass of the trunk computes.

    Args:
        arguments: of the trunk's call.
        n_tokens: computed by the pass.
        past: columns in its cache when it began.
    """
    mask = arguments.get("attention_mask")
    # A sliding-window cache forgets columns, the mask does not; one that is prepared already says nothing.
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return max(past, mask.shape[1] - n_tokens)
    return past


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its input ids; a model with offloaded parameters takes them on the CPU."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextmanager
def keeping_activations(trunk: PreTrainedModel) -> Iterator[None]:
    """Turn gradient checkpointing off for the time of a ``with`` block.

    It runs layers without a graph, and again in backward, when the hooks of the block are gone: what they
    recorded would have no gradient, and what they edited the gradient of another pass.
    """
    # The trunk has the switch, or each layer.
    switched = [module for module in trunk.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in switched:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in switched:
            module.gradient_checkpointing = True


def check_evaluating(model: PreTrainedModel) -> None:
    """Refuse a model in training mode.

    Raises:
        InputError: if it is.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout makes every run another: call model.eval()")


def past_length(past_key_values: Any) -> int:
    """Return the number of columns a cache holds; 0 for None.

    A cache is an object that says so or, in transformers 4.34.0, a tuple over layers of (keys, values), each
    [B, H, T, D].
    """
    if hasattr(past_key_values, "get_seq_length"):
        return int(past_key_values.get_seq_length())
    if past_key_values is None or past_key_values[0] is None:
        return 0
    length: int = past_key_values[0][0].shape[-2]
    return length


def cache_tensors(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each layer of a cache that is an object, [B, G, T, W] each."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def blank_past(n_layers: int, n_rows: int, n_columns: int, like: Tensor) -> Any:
    """Return a cache that holds nothing but its length; it takes next to no memory."""
    part = like.new_zeros(1, 1, 1, 1).expand(n_rows, 1, n_columns, 1)
    if not hasattr(transformers, "DynamicCache"):
        return ((part, part),) * n_layers
    cache = transformers.DynamicCache()
    for layer in range(n_layers):
        cache.update(part, part, layer)
    return cache
