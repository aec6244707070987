"""Stand-ins for what may happen to a run: memory that runs out, and files that are damaged."""

from pathlib import Path
from typing import Any, NoReturn

import torch


def cuda_too_large(*args: Any, **kwargs: Any) -> NoReturn:
    """Fail as the CUDA allocator of torch does."""
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def cpu_too_large(*args: Any, **kwargs: Any) -> NoReturn:
    """Fail as the CPU allocator of torch does."""
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345678901234 bytes")


OUT_OF_MEMORY = [cuda_too_large, cpu_too_large]


def deleted(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def altered(path: Path) -> None:
    """Change one bit in the middle; the size stays the same."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [deleted, truncated, altered, emptied]
