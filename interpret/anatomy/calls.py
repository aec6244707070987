"""Calls of a model and of its layers: their arguments and their KV caches."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import Anatomy, check_is_model, text_config
from interpret.anatomy.changes import Changes
from interpret.errors import InputError


def longest_text(model: PreTrainedModel) -> int:
    """Return the maximum length of a text in tokens; ``sys.maxsize`` without a limit, as in Bloom."""
    longest = getattr(text_config(model), "max_position_embeddings", None)
    return sys.maxsize if longest is None or longest < 0 else longest  # -1 in XLNet


def check_length(model: PreTrainedModel, what: str, n_tokens: int, new_tokens: int = 0) -> None:
    """Check that a model can read a text and the tokens that it writes after it.

    Beyond its maximum length, a model with a table of positions fails with an index error, and one with rotary
    embeddings silently computes numbers for which it was not trained.

    Args:
        model: the model.
        what: the text, as the message names it, such as ``prompts[2]``.
        n_tokens: number of tokens of the text.
        new_tokens: how many tokens the model writes after it.

    Raises:
        InputError: if there are more tokens than the model reads.
        UnsupportedModelError: if the model is hidden in a wrapper.
    """
    check_is_model(model)
    longest = longest_text(model)
    if n_tokens > longest:
        raise InputError(f"{what} has {n_tokens} tokens; this model reads at most {longest}")
    if n_tokens + new_tokens > longest:
        raise InputError(
            f"{what} has {n_tokens} tokens; with {new_tokens} new tokens it exceeds the {longest} that this model reads"
        )


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states [B, T, D] from the arguments of a layer's call."""
    return args[0] if args else kwargs["hidden_states"]


def with_layer_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a layer's call with its hidden states replaced."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def first_column(arguments: Mapping[str, Any], n_tokens: int, past: int) -> int:
    """Return the absolute column of the first token that a pass of the trunk computes.

    Args:
        arguments: arguments of the trunk's call.
        n_tokens: number of tokens that the pass computes.
        past: number of columns in the cache before the pass.
    """
    mask = arguments.get("attention_mask")
    # A sliding-window cache drops columns, a 2-D mask does not; a prepared 4-D mask does not show the column.
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return max(past, mask.shape[1] - n_tokens)
    return past


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device of a model's input ids; the CPU if its parameters are offloaded.

    Raises:
        UnsupportedModelError: if the model is hidden in a wrapper.
    """
    check_is_model(model)
    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextmanager
def keeping_activations(model: PreTrainedModel) -> Iterator[None]:
    """Turn gradient checkpointing off inside the ``with`` block, in a model or its trunk.

    Checkpointing runs the layers without a graph, and again in the backward pass, when the hooks of the block are
    gone: recorded states would have no gradient, and edited states the gradient of an unedited pass.
    """
    # Either the trunk has the flag, or each layer.
    switched = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    with Changes() as change, change:
        for module in switched:
            change.set(module, "gradient_checkpointing", False)
        yield


def tokens_of(arguments: Mapping[str, Any]) -> Any:
    """Return the ids, [B, T], or embeddings, [B, T, width], among the arguments of a call; None without both."""
    ids = arguments.get("input_ids")
    return arguments.get("inputs_embeds") if ids is None else ids


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the bound arguments of a call, or None.

    Its name is ``past_key_values``, since transformers 5.24 ``cache``, of which the former is a deprecated name that
    the signature no longer has; a few models have names of their own.
    """
    given = dict(arguments)
    for rest in arguments.values():
        given |= rest if type(rest) is dict else {}  # what the signature does not name
    found = (given.get(name) for name in ("cache", "past_key_values", "cache_params", "state"))
    return next((cache for cache in found if cache is not None), None)


def with_cache(forward: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """Return a cache as the argument of a model's ``forward``, by the name that the release has for it."""
    return {"cache" if "cache" in signature(forward).parameters else "past_key_values": cache}


def past_length(past_key_values: Any) -> int | None:
    """Return the number of columns in a cache; 0 for None.

    A cache is an object with ``get_seq_length`` or, in transformers 4.34.0, a tuple over layers of (keys, values),
    each [B, G, T, W]. If no layer has keys and values, as in Mamba, it holds the state after the last token, which does
    not tell how many there were: the result is None, if there was one.
    """
    layers = getattr(past_key_values, "layers", None)
    if layers and not any(hasattr(layer, "get_seq_length") for layer in layers):
        return None if past_key_values.has_previous_state() else 0
    if hasattr(past_key_values, "get_seq_length"):
        return 0 if _has_empty_keys(past_key_values) else int(past_key_values.get_seq_length())
    if past_key_values is None:
        return 0
    if not isinstance(past_key_values, tuple | list) or isinstance(past_key_values[0], Tensor):
        return None  # the states of RWKV, and of Mamba before transformers 5
    if past_key_values[0] is None:
        return 0
    length: int = past_key_values[0][0].shape[-2]
    return length


def _has_empty_keys(cache: Any) -> bool:
    """Return whether a cache with a list of keys in place of layers has none yet.

    Such caches of hybrid models in transformers 4.57 (Jamba, Bamba, Granite 4) then say that the number of rows of the
    batch is their length.
    """
    keys = None if hasattr(cache, "layers") else getattr(cache, "key_cache", None)
    return isinstance(keys, list) and all(part is None or part.numel() == 0 for part in keys)


def cache_tensors(cache: Any) -> list[Tensor]:
    """Return all tensors of a cache object: keys and values of each layer, [B, G, T, W], and recurrent states."""
    held: list[Tensor | None] = []
    for layer in cache.layers:
        held += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for name in ("conv_states", "recurrent_states"):
            held += getattr(layer, name, {}).values()
    return [tensor for tensor in held if tensor is not None]


def blank_past(n_layers: int, n_rows: int, n_columns: int, like: Tensor) -> Any:
    """Return a cache of zeros, of which only the length, ``n_columns``, is used; it takes almost no memory."""
    part = like.new_zeros(1, 1, 1, 1).expand(n_rows, 1, n_columns, 1)
    if not hasattr(transformers, "DynamicCache"):
        # Keys and values, or, in GPT-BigCode, one tensor for both: a stack of the two is read as either.
        return (part.expand(2, -1, -1, -1, -1),) * n_layers
    cache = transformers.DynamicCache()
    for layer in range(n_layers):
        cache.update(part, part, layer)
    return cache


class _StopError(Exception):
    """Raised before the first layer, to skip the rest of the pass."""


def first_layer_input(anatomy: Anatomy, embeddings: Tensor, column: int) -> Tensor:
    """Return the input of layer 0, [B, N, D], for word embeddings, [B, N, width], from column ``column`` on.

    The model's own code prepares a pass, which is stopped before the layer.
    """
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(layer_input(args, kwargs))
        raise _StopError

    given = dict[str, Any]()
    if column:
        past = blank_past(len(anatomy.layers), len(embeddings), column, embeddings)
        given = with_cache(anatomy.trunk.forward, past)
        if isinstance(past, tuple) and anatomy.family.counts_mask:
            # Not for all families: others would wait for the GPU to find out that the mask hides nothing.
            mask = embeddings.new_ones(len(embeddings), column + embeddings.shape[1], dtype=torch.long)
            given = {**given, "attention_mask": mask}
    with Changes() as change, change, suppress(_StopError):
        change.before(anatomy.layers[0], stop)
        # A copy, because CTRL scales what it is given in place.
        anatomy.trunk(inputs_embeds=embeddings.clone(), use_cache=False, **given)
    return seen[0]
