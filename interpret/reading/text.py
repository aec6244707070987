"""Read files. Errors name the file and say what would be right."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from interpret.errors import InputError, named, one_line

LARGEST_TEXT = 2**30
"""Maximum size of a text file in bytes; a file of 100,000 facts has about 30 million."""


def open_file(path: str | Path) -> BufferedReader:
    """Open a file for reading; pipes and devices, such as /dev/zero, might never begin or never end.

    Raises:
        OSError: if it cannot be opened, or is not a file.
        ValueError: if the path contains NUL.
    """
    path = Path(path)
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a directory gives an error of its own
        raise OSError(errno.EINVAL, "it is a pipe or a device; save its content in a file", os.fspath(path))
    return path.open("rb")


def read_text(path: str | Path, *, like: str, most: int = LARGEST_TEXT) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Args:
        path: the file.
        like: a valid file of the same kind, which the message names if ``path`` does not exist.
        most: maximum size of the file in bytes.

    Raises:
        InputError: if the file is missing, too large or cannot be read, or is not UTF-8.
    """
    try:
        with open_file(path) as file:
            data = file.read(most + 1)
        text = "" if len(data) > most else data.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{named(path)} does not exist; give a {_kind(like)} file like {like}") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with NUL
        raise InputError(f"{named(path)} cannot be read: {_problem(error)}") from None
    if len(data) > most:
        raise InputError(f"{named(path)} has more than {most:,} bytes; is it a {_kind(like)} file like {like}?")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: if the file is missing or cannot be read.
    """
    try:
        with open_file(path) as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise InputError(f"{named(path)} cannot be read: {_problem(error)}") from None


def is_unicode(text: str) -> bool:
    r"""Return whether a text can be encoded; ``"\ud800"`` in JSON gives half of a surrogate pair, which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _kind(like: str) -> str:
    return Path(like).suffix[1:].upper()


def _problem(error: OSError | ValueError) -> str:
    """Return what is wrong, without the path, which an ``OSError`` would repeat."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"{one_line(error)}; save the file as UTF-8"
    return one_line(error)
