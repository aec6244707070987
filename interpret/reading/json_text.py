"""Read JSON and JSON Lines with bounds on the depth and on the length of numbers.

Python's own reader follows nested brackets until its stack is full, keeps the last of two equal keys, and cannot read
integers of more than 4300 digits. Each of these is refused here with one message.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, named, one_line
from interpret.reading.text import read_text

DEEPEST = 100
"""Maximum depth of nested lists and objects."""


def read_json(path: str | Path, *, like: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file; ``NaN`` and ``Infinity`` are read as floats.
        like: a valid file of the same kind, which the message names if ``path`` does not exist.

    Raises:
        InputError: if the file is missing, cannot be read, or is not JSON, see ``parse_json``.
    """
    text = read_text(path, like=like)
    try:
        return parse_json(text, nan_allowed=True)
    except InputError as error:
        raise InputError(f"{named(path)} {error}") from None


def parse_json(text: str | bytes, *, nan_allowed: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the text; as bytes in UTF-8, UTF-16 or UTF-32. A byte order mark is ignored.
        nan_allowed: read ``NaN`` and ``Infinity``, which JSON does not have, but which Python and pandas write: in a
            user's file, they may be in metadata.

    Raises:
        InputError: if it is not JSON, is nested deeper than ``DEEPEST``, has a key twice in one object, or has an
            integer that Python cannot read. The message continues a sentence that begins with the name of the file.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    interpret.errors.InputError: has the key 'a' twice in the object {'a': 1, 'a': 2}; keep one
    """
    try:
        text = text.removeprefix("\ufeff") if isinstance(text, str) else text
        constant = None if nan_allowed else _no_constant
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=constant)
    except RecursionError:
        raise InputError(_too_deep()) from None
    except InputError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not JSON: {one_line(error)}") from None
    except ValueError:  # the only other one: an integer with more digits than Python converts
        raise InputError("has a number with more digits than can be read") from None
    if _is_deep(value):
        raise InputError(_too_deep())
    return value


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield the lines of JSON Lines that are not empty, each with its number from 1.

    Only ``\n`` ends a line: strings may contain other separators, such as U+2028.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _too_deep() -> str:
    return f"is nested deeper than {DEEPEST} levels; expected a few"


def _no_constant(name: str) -> None:
    raise InputError(f"is not JSON: it has {name}; write null")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        shown = ", ".join(f"{brief(key)}: {brief(value)}" for key, value in pairs[:3])
        more = ", ..." if len(pairs) > 3 else ""
        raise InputError(f"has the key {brief(twice)} twice in the object {{{shown}{more}}}; keep one")
    return found


def _is_deep(value: Any) -> bool:
    """Return whether lists and objects are nested deeper than ``DEEPEST``, level by level and without recursion."""
    level = [value]
    for _ in range(DEEPEST):
        level = [item for container in level for item in _containers(container)]
        if not level:
            return False
    return True


def _containers(value: Any) -> list[Any]:
    """Return the lists and dicts directly in a value; fast for the long lists of numbers of a score file."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not {list, dict} & set(map(type, items)):
        return []
    return [item for item in items if isinstance(item, (list, dict))]
