"""Passes that may not fit in memory: first as many side by side as do, then one whose layers keep nothing for backward.

The second is gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) with a layer as the unit: backward needs the
graph of one layer at a time and what enters each layer, for about one forward pass more. All numbers are the same ones,
computed from the same; of rows that no longer go side by side, last digits may differ.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from interpret.anatomy.passes import checkpointed
from interpret.attribution.steps.step import Room, Step
from interpret.device import unless_too_large
from interpret.errors import UnsupportedModelError

T = TypeVar("T")


def in_parts(step: Step, rows: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what ``work`` makes of rows, so many at once as fit: [N, ...] -> [N, ...].

    Raises:
        MemoryError: if not even one row fits.
    """
    found: list[Tensor] = []
    done = 0
    while done < len(rows):
        some = rows[done : done + (step.room.rows or step.batch_size)]
        result = _tried(step, partial(work, some), len(some))
        if result is not None:
            found.append(result)
            done += len(some)
    return torch.cat(found)


def at_once(step: Step, work: Callable[[], T]) -> T:
    """Return the result of work that cannot be parted.

    Raises:
        MemoryError: if it does not fit.
    """
    while True:
        result = _tried(step, work, 1)
        if result is not None:
            return result


def _tried(step: Step, work: Callable[[], T], n_rows: int) -> T | None:
    """Return None where the work does not fit, and there is something left to try."""
    with checkpointed(step.layers()) if step.room.checkpointing else nullcontext():
        result = unless_too_large(work)
    if result is None:
        _make_room(step, n_rows)
    return result


def _make_room(step: Step, n_rows: int) -> None:
    room: Room = step.room
    if n_rows > 1:
        room.rows = (n_rows + 1) // 2
    elif room.checkpointing or not _has_layers(step):
        raise MemoryError(f"a text of {len(step.ids)} tokens")
    else:
        room.checkpointing = True


def _has_layers(step: Step) -> bool:
    try:
        return bool(step.layers())
    except UnsupportedModelError:
        return False
