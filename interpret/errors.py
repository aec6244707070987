"""The exceptions of this package, and the parts of their messages: values, paths, texts and names of bounded length.

::

    InterpretError                  base class: errors a user can fix; commands print them without a traceback
    +-- SpecError (ValueError)      insert_info does not fit the model or the batch
    +-- InputError (ValueError)     a prompt file, a selector or an argument is invalid
    +-- UnsupportedModelError       the model's family is not supported, or not for this feature
    +-- ModelError                  a model or tokenizer cannot be opened, or a text does not fit in memory
    +-- RunError                    a run directory cannot be created, resumed or written
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from types import MappingProxyType

LONGEST_MESSAGE = 1000
"""Maximum number of characters of a message; of a longer one, the middle is left out."""
_END = 250
"""Number of characters at the end of a shortened message: the advice is there."""


class InterpretError(Exception):
    """Base class of all errors that a user can cause and fix."""

    def __str__(self) -> str:
        """Return the message, at most ``LONGEST_MESSAGE`` characters, with control characters as escapes."""
        whole = super().__str__()
        if len(whole) > 2 * LONGEST_MESSAGE:  # so that the work is bounded, too
            whole = whole[:LONGEST_MESSAGE] + whole[-LONGEST_MESSAGE:]
        text = "\n".join(map(_printable, whole.split("\n")))
        return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - _END - 5]} ... {text[-_END:]}"


class SpecError(InterpretError, ValueError):
    """``insert_info`` does not fit the model or the batch; the message names sample and key."""


class InputError(InterpretError, ValueError):
    """A prompt file, a selector or an argument is invalid."""


class UnsupportedModelError(InterpretError):
    """The model's family is not described in ``anatomy``, or does not support the requested feature."""


class ModelError(InterpretError):
    """A model or its tokenizer cannot be opened, or not even a single text fits in memory."""


class RunError(InterpretError):
    """A run directory cannot be created, resumed or written."""


# ---------------------------------------------------------------------------------------------- parts of messages

_SHOWN = 100
"""Maximum number of characters of a value in a message."""
_LONGEST_NUMBER = 400
"""Integers with more bits than this are described by their size, because Python may refuse to print them."""
_MOST = 40
"""Maximum number of names in a message; of a longer list, only the first ``_MOST // 2`` are shown."""
_LONGEST_NAME = 100
"""Longer names are not compared with others."""
_MOST_COMPARED = 1000
"""Maximum number of names that are compared with a wrong one, and of keys that are checked for misspellings."""
_BRACKETS: Mapping[type, tuple[str, str]] = MappingProxyType({list: ("[", "]"), tuple: ("(", ")"), dict: ("{", "}")})


def brief(value: object, most: int = _SHOWN) -> str:
    """Return a value as Python writes it, on one line, and cut off after ``most`` characters.

    The work is bounded as well: of a long or nested value, only the part that is shown is visited.

    >>> brief(["Rome", 3, {"in": None}])
    "['Rome', 3, {'in': None}]"
    >>> brief(list(range(1000)), most=12)
    '[0, 1, 2, 3,...'
    """
    text = ""
    for piece in islice(_pieces(value, most), most + 1):
        text += piece
        if len(text) > most:
            return f"{text[:most]}..."
    return text


def _pieces(value: object, most: int) -> Iterator[str]:
    """Yield the parts of ``repr(value)``, none of them empty; long strings and numbers are cut or described."""
    if type(value) in _BRACKETS:
        yield from _of_container(value, most)
    elif isinstance(value, str):
        yield repr(value[: most + 1])
    elif isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        yield f"a number of about {value.bit_length() * 3 // 10 + 1} digits"
    else:
        yield " ".join(repr(value).split())


def _of_container(value: object, most: int) -> Iterator[str]:
    """Yield the parts of a list, tuple or dict; elements are visited as their parts are asked for."""
    first, last = _BRACKETS[type(value)]
    yield first
    for number, item in enumerate(value):  # type: ignore[arg-type, var-annotated]  # one of the types of _BRACKETS
        if number:
            yield ", "
        yield from _pieces(item, most)
        if isinstance(value, dict):
            yield ": "
            yield from _pieces(value[item], most)
    yield ",)" if isinstance(value, tuple) and len(value) == 1 else last


def named(path: str | os.PathLike[str]) -> str:
    """Return a path for a message: as it is, or ``brief`` if it is very long or contains control characters."""
    text = os.fspath(path)
    return text if text.isprintable() and len(text) <= 2 * _SHOWN else brief(text, 2 * _SHOWN)


def one_line(text: object, most: int = 3 * _SHOWN) -> str:
    """Return a text, such as the message of a library's error, on one line and cut off after ``most`` characters."""
    line = _printable(" ".join(str(text)[: 10 * most].split()))
    return line if len(line) <= most else f"{line[:most]}..."


def _printable(text: str) -> str:
    """Return a text in which characters that cannot be printed are escapes, as in ``repr``."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def closest(name: object, allowed: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name that is most similar to a wrong one; None if none is, see ``difflib.get_close_matches``."""
    if not isinstance(name, (str, int, float)) or (isinstance(name, int) and name.bit_length() > _LONGEST_NUMBER):
        return None
    wrong = str(name)
    if len(wrong) > _LONGEST_NAME:
        return None
    near = get_close_matches(wrong, islice(allowed, _MOST_COMPARED), n=1, cutoff=cutoff)
    return near[0] if near else None


def misspelt(keys: Iterable[object], allowed: Iterable[str]) -> tuple[str, str] | None:
    """Return the first key that is very similar to an allowed one, and the allowed one; None if there is none.

    >>> misspelt(["prompt", "subjct", "mine"], ["prompt", "subject"])
    ('subjct', 'subject')
    """
    names = tuple(allowed)
    for key in islice(keys, _MOST_COMPARED):
        if isinstance(key, str) and key not in names and (near := _near(key, names)):
            return key, near
    return None


@lru_cache(maxsize=10_000)
def _near(key: str, names: tuple[str, ...]) -> str | None:
    return closest(key, names, cutoff=0.8)


def unknown(kind: str, got: object, allowed: Iterable[str]) -> str:
    """Return the error message for a name that is not in ``allowed``; it suggests the closest allowed name.

    >>> unknown("replacing_mode", "nomralized", ["normalized", "addition"])
    "unknown replacing_mode 'nomralized'; did you mean 'normalized'? Allowed: normalized, addition"
    """
    names = list(allowed)
    near = closest(got, names)
    hint = f"did you mean {near!r}? " if near else ""
    listed = names if len(names) <= _MOST else [*names[: _MOST // 2], f"... ({len(names)} in all)"]
    return f"unknown {kind} {brief(got)}; {hint}Allowed: {', '.join(listed)}"
