"""Durable file operations: once a function returns, its data survives a killed process or a power failure."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from interpret.errors import RunError


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file against other processes inside the ``with`` block; the lock also ends with the process.

    Yields:
        Whether the file can be written; if not, as on a read-only disk, it is not locked.

    Raises:
        RunError: if another process holds the lock.
    """
    try:
        # Writable, because network file systems require it. Links are refused, because they may lead to foreign files.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not path.exists():
            raise
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{path.parent} is being written by another process; wait for it or stop it") from None
        yield True
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not unlock if a forked child has the descriptor
        os.close(descriptor)


@contextmanager
def waiting_lock(path: Path, say_waiting: Callable[[], None]) -> Iterator[None]:
    """Wait for a lock file, and hold it inside the ``with`` block; the lock also ends with the process.

    Args:
        path: the lock file; created if it does not exist.
        say_waiting: called once if another process holds the lock.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say_waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file, and return once the data is on disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
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
    there = path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        whole = path.read_bytes().rfind(b"\n") + 1
        torn = path.stat().st_size - whole
        cut(path, whole)
        append_durably(path, line + b"\n")
        if not there:
            sync(path.parent)
        return torn
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def cut(path: Path, size: int) -> None:
    """Truncate a file to ``size`` bytes, if it is longer."""
    if path.stat().st_size > size:
        os.truncate(path, size)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
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
