"""Time, memory, matrix arithmetic and waits of a piece of work, on a GPU or a CPU."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

T = TypeVar("T")
GIB = 2**30
_SYNCHRONISES = "called a synchronizing CUDA operation"


def on_gpu(device: torch.device) -> bool:
    """Return whether a device is a GPU whose memory and waits can be measured."""
    return device.type == "cuda"


def finished(device: torch.device) -> None:
    """Wait until a device has done all its work."""
    if on_gpu(device):
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A piece of work that was timed."""

    result: T
    seconds: float
    peak: float | None
    """GiB that were allocated at most, beside what was allocated before; None on a CPU."""


def timed(work: Callable[[], T], device: torch.device) -> Timed[T]:
    """Run a piece of work, and return its result, time and peak of memory."""
    finished(device)
    before = 0
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    start = perf_counter()
    result = work()
    finished(device)
    seconds = perf_counter() - start
    peak = (torch.cuda.max_memory_allocated(device) - before) / GIB if on_gpu(device) else None
    return Timed(result, seconds, peak)


class _Operations(TorchDispatchMode):
    """Counts multiplications and additions of matrix products by torch's formulas.

    torch's own ``FlopCounterMode`` also hooks every module, with hooks that ``torch.autograd.grad`` refuses if a module
    is given a leaf of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, packet = func(*args, **(kwargs or {})), func._overloadpacket
        if packet is getattr(torch.ops.mkldnn, "_linear_pointwise", None):  # torch has no formula for oneDNN's product
            self.total += 2 * args[0].numel() * result.shape[-1]
        elif packet in flop_registry:
            self.total += flop_registry[packet](*_of_as_many_heads(packet, args), **(kwargs or {}), out_val=result)
        return result


def _of_as_many_heads(packet: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an attention kernel's arguments with as many key and value heads as queries, which torch's formulas need.

    Kernels with grouped queries multiply each key head by all queries of its group.
    """
    if "scaled_dot_product" not in str(packet):
        return args
    per_head = [one for one in args if isinstance(one, Tensor) and one.ndim == 4]  # [B, heads, T, width]
    most = max(one.shape[1] for one in per_head)
    return tuple(
        one[:, :1].expand(-1, most, -1, -1) if any(one is other for other in per_head) else one for one in args
    )


def flops_of(work: Callable[[], object]) -> int:
    """Run a piece of work, and return the number of multiplications and additions in its matrix products."""
    with _Operations() as counted:
        work()
    return counted.total


def waits_of(work: Callable[[], object]) -> int:
    """Run a piece of work on a GPU, and return how often the CPU waited for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum(_SYNCHRONISES in str(warning.message) for warning in raised)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of one large matrix product, the best of several."""
    size = 8192 if on_gpu(device) else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: torch.mm(left, right), device).seconds for _ in range(8))
    return 2 * size**3 / best
