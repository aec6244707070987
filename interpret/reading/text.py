"""Read text files. Errors name the file and say what would be right."""

from pathlib import Path

from interpret.errors import InputError, named, one_line


def read_text(path: str | Path, *, like: str) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Args:
        path: the file.
        like: a valid file of the same kind, which the message names if ``path`` does not exist.

    Raises:
        InputError: if the file is missing or cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        kind = Path(like).suffix[1:].upper()
        raise InputError(f"{named(path)} does not exist; give a {kind} file like {like}") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with NUL
        raise InputError(f"{named(path)} cannot be read: {_problem(error)}") from None


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: if the file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{named(path)} cannot be read: {_problem(error)}") from None


def is_unicode(text: str) -> bool:
    r"""Return whether a text can be encoded; ``"\ud800"`` in JSON gives half of a surrogate pair, which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _problem(error: OSError | ValueError) -> str:
    """Return what is wrong, without the path, which an ``OSError`` would repeat."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"{one_line(error)}; save the file as UTF-8"
    return one_line(error)
