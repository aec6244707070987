"""Memory size of a device, copies to it, retries with smaller batches when memory runs out, and float64."""

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
    "not enough memory: you tried to allocate",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


TOO_LARGE = "does not fit in memory: shorten it, use a smaller dtype, or use another device"
"""The end of the reason why something is dropped."""


_LARGEST_KEPT = 2**25 - 2**16
"""Bytes; a little less than the 32 MiB above which glibc never keeps a block."""


def total_memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes; for a CPU, the memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def reuse_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensors of a CPU; without effect if it is not glibc.

    glibc returns freed memory to the system beyond a limit, and then every page of the next tensor is a page fault,
    which takes longer than the arithmetic on its numbers. The limit is twice the largest block of up to 32 MiB that
    has been freed (``M_MMAP_THRESHOLD`` in mallopt(3)), so one block is allocated, not used, and freed.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8, device="cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def in_batches(
    rows: Sequence[T],
    size: int,
    work: Callable[[Sequence[T]], list[Any]],
    say: Callable[[str], None],
    too_large: Callable[[T], Any] | None = None,
) -> Iterator[Any]:
    """Yield the result of ``work`` for each row; a batch that does not fit in memory is halved and retried.

    Args:
        rows: inputs of ``work``.
        size: number of rows in a batch.
        work: returns one result per row of a batch.
        say: receives a message when the batch size is reduced.
        too_large: returns the result of a row that does not fit in memory alone, after which batches have ``size`` rows
            again; None to raise an error.

    Raises:
        ModelError: if not even a single row fits, and ``too_large`` is None.
    """
    at, fitting = 0, size
    while at < len(rows):
        results = unless_too_large(partial(work, rows[at : at + fitting]))
        if results is not None:
            yield from results
            at += fitting
        elif fitting > 1:
            fitting = (min(fitting, len(rows) - at) + 1) // 2
            say(f"a batch did not fit in memory; continuing with batches of {fitting}")
        elif too_large is None:
            raise ModelError("not even a single text fits in memory; use a smaller dtype or fewer new tokens")
        else:
            yield too_large(rows[at])
            at, fitting = at + 1, size


def unless_too_large(work: Callable[[], T]) -> T | None:
    """Return the result of ``work``, or None if memory ran out; the tensors that the error referenced are then free."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; values from the CPU are sent without waiting for what the device still computes.

    An ordinary copy waits for all work that the device has been given, so that a GPU idles while the next work is
    prepared.
    """
    return values.to(device, non_blocking=values.device.type == "cpu")


def index_on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Return whole numbers as an int64 tensor on a device, without waiting for what the device still computes.

    >>> index_on(torch.device("cpu"), [3, 1]).tolist()
    [3, 1]
    """
    return sent(torch.tensor(numbers, dtype=torch.long), device)


WITHOUT_FLOAT64 = {"mps"}
"""Device types without float64."""


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, differentiably; it moves to the CPU if its device does not support float64.

    >>> import torch
    >>> in_float64(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float64
    """
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
