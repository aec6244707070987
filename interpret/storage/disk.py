"""Writing files so that what was said to be written outlives a kill or a power cut."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from interpret.errors import RunError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file against every other process; the lock ends with this one, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # writable: network file systems ask for that
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{path.parent} is being written by another process; wait for it or stop it") from None
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough while a forked child holds the descriptor
        os.close(descriptor)


@contextmanager
def waiting_lock(path: Path, say_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file, once no other process does; the lock ends with this one, however it ends.

    Args:
        path: of the lock file, made if it is not there.
        say_waiting: called once if another process holds it.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say_waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append_durably(path: Path, data: bytes) -> None:
    """Write at the end of a file, and return when the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        while data:  # a disk that is nearly full takes a part, and refuses the next
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def append_line(path: Path, line: bytes) -> int:
    """Write a line at the end of a file of lines, when other processes have written theirs; made if it is not there.

    What a kill has left of a last line goes.

    Args:
        path: of the file.
        line: without its end.

    Returns:
        How many bytes of such a last line were dropped.
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
    """Drop what a file holds beyond ``size`` bytes."""
    if path.stat().st_size > size:
        os.truncate(path, size)


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, whole.

    Raises:
        RunError: if the disk does not take it.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the place of ``path`` when the ``with`` block ends without an error.

    Raises:
        RunError: if the disk does not take it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
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
