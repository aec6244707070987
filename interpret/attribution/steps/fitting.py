"""Retry passes that do not fit in memory: with fewer rows per batch, then with gradient checkpointing.

Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) is done per layer: only the input of each layer is kept, and
the backward pass runs each layer again, which costs about one forward pass more. The results are the same; with smaller
batches the last digits may differ.
"""

from collections.abc import Callable, Iterator
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
    """Apply ``work`` to rows, in batches that fit in memory: [N, ...] -> [N, ...].

    Raises:
        MemoryError: if a single row does not fit.
    """
    return torch.cat(list(each_part(step, len(rows), lambda some: work(rows[some]))))


def each_part(step: Step, n_rows: int, work: Callable[[slice], T]) -> Iterator[T]:
    """Yield the results of ``work`` for slices of N rows that fit in memory, in order.

    Raises:
        MemoryError: if a single row does not fit.
    """
    done = 0
    while done < n_rows:
        some = slice(done, min(done + (step.room.rows or step.batch_size), n_rows))
        result = _tried(step, partial(work, some), some.stop - some.start)
        if result is not None:
            yield result
            done = some.stop


def summed(step: Step, n_rows: int, work: Callable[[slice], list[Tensor]]) -> list[Tensor]:
    """Return the sums of what ``work`` returns for slices of N rows that fit in memory.

    Raises:
        MemoryError: if a single row does not fit.
    """
    total, *parts = each_part(step, n_rows, work)
    for part in parts:
        total = [one + other for one, other in zip(total, part, strict=True)]
    return total


def at_once(step: Step, work: Callable[[], T]) -> T:
    """Return the result of ``work``, which cannot be split into batches.

    Raises:
        MemoryError: if it does not fit.
    """
    while True:
        result = _tried(step, work, 1)
        if result is not None:
            return result


def _tried(step: Step, work: Callable[[], T], n_rows: int) -> T | None:
    """Return the result of ``work``; None if it does not fit and can be retried with less memory."""
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
