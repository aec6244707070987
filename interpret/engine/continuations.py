"""Side-by-side continuations of a shared prefix; each row stores only the keys and values of its own tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from interpret.engine.layers import Context, Past, Untapped, run_layer
from interpret.engine.masks import masks_for
from interpret.engine.trunk import Trunk

CPU_TOKENS = 512
"""Tokens per call of a layer on a CPU: enough for fast matrix products, few enough for the CPU's caches and for memory
that is reused (``reuse_freed_memory``)."""

T = TypeVar("T")


@dataclass
class RowMemory:
    """Keys and values of R rows' own tokens in one layer, with space for more tokens."""

    keys: Tensor
    """[1, G, R, room, W]."""
    values: Tensor
    """[1, G, R, room, W]."""
    length: int = 0
    """Number M of tokens stored."""

    @classmethod
    def empty(cls, like: Past, n_rows: int, room: int) -> "RowMemory":
        """Return a memory without tokens; ``like``, [1, G, P, W], determines the heads, dtype and device."""
        shape = (1, like.keys.shape[1], n_rows, room, like.keys.shape[3])
        return cls(like.keys.new_empty(shape), like.values.new_empty(shape))

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of N more tokens, each [1, G, R, N, W]; return all, each [1, G, R, M + N, W]."""
        start, self.length = self.length, self.length + keys.shape[3]
        self.keys[..., start : self.length, :] = keys
        self.values[..., start : self.length, :] = values
        return self.keys[..., : self.length, :], self.values[..., : self.length, :]

    def part(self, first: int, last: int) -> "RowMemory":
        """Return the memory of rows ``first`` to ``last - 1``, without a copy."""
        return RowMemory(self.keys[:, :, first:last], self.values[:, :, first:last], self.length)

    def chosen(self, rows: Tensor, room: int) -> "RowMemory":
        """Return a copy of the chosen rows, [N] int64, in the given order, with space for ``room`` more tokens."""
        index = rows.to(self.keys.device)
        shape = (*self.keys.shape[:2], len(rows), self.length + room, self.keys.shape[4])
        copy = RowMemory(self.keys.new_empty(shape), self.values.new_empty(shape), self.length)
        for old, new in ((self.keys, copy.keys), (self.values, copy.values)):
            new[..., : self.length, :] = old[..., : self.length, :].index_select(2, index)
        return copy


def run_rows(trunk: Trunk, x: Tensor, shared: Sequence[Past], memory: Sequence[RowMemory]) -> Tensor:
    """Run the next N tokens of R rows through all layers, and store their keys and values.

    Args:
        trunk: the model's parts.
        x: [R, N, D], the input of layer 0.
        shared: for each layer, keys and values of the prefix that all rows share.
        memory: for each layer, keys and values of the rows' own tokens after the prefix; extended in place.

    Returns:
        [R, N, D], the last layer's output.
    """
    n_before = shared[0].keys.shape[2] + memory[0].length
    columns = slice(n_before, n_before + x.shape[1])
    masks = masks_for(trunk.layers, x.shape[1], n_before, x)
    cells = x[:, None]  # as cells of one sample
    for layer, mask, past, own in zip(trunk.layers, masks, shared, memory, strict=True):
        context = Context(past, mask.to(layer.device), columns, own)
        cells, _ = run_layer(layer, cells.to(layer.device), context, Untapped())
    return cells[:, 0]


def at_once(rows: Sequence[T], n_tokens: int, device: torch.device) -> Iterator[Sequence[T]]:
    """Split rows of N tokens into batches of the best size for one call of a layer."""
    size = len(rows) if device.type == "cuda" else max(1, CPU_TOKENS // n_tokens)
    for start in range(0, len(rows), max(1, size)):
        yield rows[start : start + size]
