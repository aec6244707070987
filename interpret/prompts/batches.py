"""Padded batches, and the mapping between token positions and columns of the padded batch.

A position counts the tokens of a sample without padding; a column counts the padded batch. Other modules use positions,
the model uses columns, and this module converts between them. A column holds a token where the attention mask is
nonzero; padding may be on either side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interpret.errors import InputError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Batch:
    """Rows of token ids padded to equal length, as the input of a model."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64, 1 at tokens and 0 at padding."""

    def model_inputs(self) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and padding-aware ``position_ids`` for a forward pass."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": position_ids(self.attention_mask),
        }


def pad(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    *,
    side: Side = "left",
    device: torch.device | str | None = None,
) -> Batch:
    """Pad rows of token ids to the length of the longest.

    Args:
        rows: token ids, one sequence per sample; none may be empty.
        pad_id: the token id written at padding; only the mask decides what is padding.
        side: the side of the padding; decoding needs ``"left"``.
        device: the device of the tensors.

    Raises:
        InputError: if there are no rows, or a row is empty.

    >>> pad([[5, 6, 7], [8]], pad_id=0).input_ids.tolist()
    [[5, 6, 7], [0, 0, 8]]
    """
    if not rows:
        raise InputError("there are no rows of tokens to pad: give at least one")
    lengths = [len(row) for row in rows]
    if 0 in lengths:
        raise InputError(f"row {lengths.index(0)} has no tokens: every sample needs at least one")
    ids = torch.full((len(rows), max(lengths)), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        columns = slice(max(lengths) - len(row), None) if side == "left" else slice(len(row))
        ids[index, columns] = torch.tensor(row, dtype=torch.long)
        mask[index, columns] = 1
    return Batch(ids.to(device), mask.to(device))


def position_ids(attention_mask: Tensor) -> Tensor:
    """Number the tokens of each row from 0, ignoring padding: [B, T] mask -> [B, T] int64.

    Padding gets position 1, as in the generation code of transformers 4.34.0; nothing attends to it.

    >>> position_ids(torch.tensor([[0, 0, 1, 1]])).tolist()
    [[1, 1, 0, 1]]
    """
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill(attention_mask == 0, 1)


def token_counts(attention_mask: Tensor) -> list[int]:
    """Return the number of tokens of each sample: [B, T] mask -> B integers."""
    return attention_mask.ne(0).sum(dim=1).tolist()


def token_columns(attention_mask: Tensor) -> Tensor:
    """Map positions to columns: [B, T] mask -> [B, T] int64 on the CPU.

    Entry ``[b, p]`` is the column of token ``p`` of sample ``b``; entries from ``token_counts(mask)[b]`` on are the
    columns of its padding.

    >>> token_columns(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist()
    [[2, 3, 0, 1], [0, 1, 2, 3]]
    """
    return attention_mask.cpu().eq(0).to(torch.int8).argsort(dim=1, stable=True)


def left_padding_order(attention_mask: Tensor) -> Tensor:
    """Return the column order, [B, T], that moves the padding of each row to the left.

    >>> mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    >>> mask.gather(1, left_padding_order(mask)).tolist()
    [[0, 1, 1], [0, 1, 1]]
    """
    return attention_mask.ne(0).to(torch.int8).argsort(dim=1, stable=True)


def ends_in_padding(attention_mask: Tensor) -> bool:
    """Tell whether any row of a [B, T] mask has padding in its last column."""
    return bool(attention_mask[:, -1].eq(0).any())
