"""Caches of keys and values: objects or, in transformers 4.34.0, a tuple over layers of (keys, values)."""

from typing import Any

import transformers
from torch import Tensor


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
