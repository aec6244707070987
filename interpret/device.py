"""Work that may not fit in memory: how much there is, and trying again with less."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from interpret.errors import ModelError

T = TypeVar("T")
# Bare RuntimeErrors: of the CPU's allocator, of Apple's, and of CUDA and its matrix library past torch's allocator.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def total_memory(device: torch.device) -> int:
    """Return all the memory of a device, in bytes; of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that something did not fit."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def in_batches(
    rows: Sequence[T], size: int, work: Callable[[Sequence[T]], list[Any]], say: Callable[[str], None]
) -> Iterator[Any]:
    """Yield what ``work`` returns for each row; a batch that does not fit in memory is halved and tried again.

    Raises:
        ModelError: if not even one row fits.
    """
    at = 0
    while at < len(rows):
        results = unless_too_large(partial(work, rows[at : at + size]))
        if results is not None:
            yield from results
            at += size
        elif size == 1:
            raise ModelError("not even one text fits in memory; use a smaller dtype, or fewer new tokens")
        else:
            size = (min(size, len(rows) - at) + 1) // 2
            say(f"a batch did not fit in memory: going on with batches of {size}")


def unless_too_large(work: Callable[[], T]) -> T | None:
    """Return None where the work does not fit; its tensors are gone by then, as the error that held them is."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


WITHOUT_FLOAT64 = {"mps"}
"""Types of devices that have no such numbers."""


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, differentiable: where it is, or on the CPU where its device has no such numbers.

    >>> import torch
    >>> in_float64(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float64
    """
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
