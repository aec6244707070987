"""Durable file operations: once a function returns, its data survives a killed process or a power failure."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from interpret.errors import RunError

_BINARY = getattr(os, "O_BINARY", 0)
"""On Windows, without this flag, ``os.write`` writes another newline."""


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file against other processes inside the ``with`` block; the lock also ends with the process.

    The file is created if it does not exist. The lock itself is a file beside it, ``.NAME.lock``, because on Windows
    nobody else could read a locked file.

    Yields:
        Whether the file can be written; if not, as on a read-only disk, it is not locked.

    Raises:
        RunError: if another process holds the lock, or the lock file is a link.
    """
    lock = _lock_beside(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{path.parent} is being written by another process; wait for it or stop it") from None
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not path.exists():
            raise
        yield False
        return
    try:
        path.touch()
        yield True
    finally:
        lock.release()


@contextmanager
def waiting_lock(path: Path, say_waiting: Callable[[], None]) -> Iterator[None]:
    """Wait for a lock file, and hold it inside the ``with`` block; the lock also ends with the process.

    Args:
        path: the lock file; created if it does not exist.
        say_waiting: called once if another process holds the lock.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say_waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_beside(path: Path) -> FileLock:
    """Return the lock of a file. Links are refused, because they may lead to foreign files."""
    place = path.with_name(f".{path.name}.lock")
    if place.is_symlink():
        raise RunError(f"{place} is a link, not a lock file; remove it")
    return FileLock(place)


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file, and return once the data is on disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | _BINARY)
    try:
        while data:  # on an almost full disk, a write may be partial and the next one fail
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def append_line(path: Path, line: bytes) -> int:
    """Append a line to a file that several processes share; the file is locked meanwhile, and created if missing.

    An incomplete last line, left by a killed process, is removed first.

    Args:
        path: the file.
        line: the line without its newline.

    Returns:
        Number of bytes of an incomplete last line that were removed.
    """
    with _lock_beside(path):
        there = path.exists()
        path.touch()
        whole = path.read_bytes().rfind(b"\n") + 1
        torn = path.stat().st_size - whole
        cut(path, whole)
        append_durably(path, line + b"\n")
        if not there:
            sync(path.parent)
        return torn


def cut(path: Path, size: int) -> None:
    """Truncate a file to ``size`` bytes, if it is longer."""
    if path.stat().st_size > size:
        os.truncate(path, size)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder where the system opens folders (Windows does not), to disk (fsync)."""
    if path.is_dir():
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:
            return
    else:
        descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_whole(path: Path, data: bytes) -> None:
    """Replace a file atomically: a reader finds either the complete old file or the complete new one.

    A file that has these contents already stays, so that a finished run can be opened on a read-only disk.

    Raises:
        RunError: if the file cannot be written.
    """
    with suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with replacing(path) as file:
        file.write(data)


def write_inside(folder: Path, name: str, data: bytes) -> None:
    """Replace a file in a folder, see ``replace_whole``; a subfolder in its name is created if it is missing.

    Args:
        folder: the folder, which exists.
        name: name of the file in it, such as ``"grids/a.npz"``.
        data: its contents.

    Raises:
        RunError: if the subfolder or the file cannot be written.
    """
    path = folder / name
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent} cannot be created: {error.strerror}") from error
    replace_whole(path, data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file, which atomically replaces ``path`` if the ``with`` block ends without an error.

    Raises:
        RunError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link to a foreign file
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
