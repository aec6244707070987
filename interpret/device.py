"""Memory size of a device, retries with smaller batches when memory runs out, and conversion to float64."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from interpret.errors import ModelError

T = TypeVar("T")
# Plain RuntimeErrors: from the CPU allocator, from MPS, and from CUDA and cuBLAS outside torch's own allocator.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


TOO_LARGE = "does not fit in memory: shorten it, use a smaller dtype, or use another device"
"""The end of the reason why something is dropped."""


def total_memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes; for a CPU, the memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def in_batches(
    rows: Sequence[T], size: int, work: Callable[[Sequence[T]], list[Any]], say: Callable[[str], None]
) -> Iterator[Any]:
    """Yield the result of ``work`` for each row; a batch that does not fit in memory is halved and retried.

    Args:
        rows: inputs of ``work``.
        size: number of rows in a batch.
        work: returns one result per row of a batch.
        say: receives a message when the batch size is reduced.

    Raises:
        ModelError: if not even a single row fits.
    """
    at = 0
    while at < len(rows):
        results = unless_too_large(partial(work, rows[at : at + size]))
        if results is not None:
            yield from results
            at += size
        elif size == 1:
            raise ModelError("not even a single text fits in memory; use a smaller dtype or fewer new tokens")
        else:
            size = (min(size, len(rows) - at) + 1) // 2
            say(f"a batch did not fit in memory; continuing with batches of {size}")


def unless_too_large(work: Callable[[], T]) -> T | None:
    """Return the result of ``work``, or None if memory ran out; the tensors that the error referenced are then free."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


WITHOUT_FLOAT64 = {"mps"}
"""Device types without float64."""


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, differentiably; it moves to the CPU if its device does not support float64.

    >>> import torch
    >>> in_float64(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float64
    """
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
