"""Parse selectors of layers and tokens, such as ``"0,5:20:5,-1"`` or ``"subject_last"``, into indices.

A selector is a comma-separated list. Each part is an index (a negative one counts from the end), a Python slice
``start:stop:step``, or a name; the name ``all`` always exists.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from interpret.errors import InputError, unknown

_INDEX = re.compile(r"[+-]?\d+")
_SLICE = re.compile(r"([+-]?\d+)?:([+-]?\d+)?(?::([+-]?\d+)?)?")


def select(kind: str, selector: str, count: int, names: Mapping[str, Sequence[int]] | None = None) -> list[int]:
    """Return the indices that a selector selects, without duplicates, in the order written.

    Args:
        kind: what is selected, for messages: "layer" or "token".
        selector: the selector.
        count: the number of layers or tokens; indices 0 to ``count - 1`` exist.
        names: additional names, and the indices that each stands for.

    Raises:
        InputError: if a part is not a selector, an index does not exist, or nothing is selected.

    >>> select("layer", "0,-1,1::2", 6)
    [0, 5, 1, 3]
    """
    table = {"all": range(count), **(names or {})}
    chosen: list[int] = []
    for part in (part.strip() for part in selector.split(",")):
        chosen += _part(kind, part, count, table)
    if not chosen:
        raise InputError(f"{kind} selector {selector!r} selects nothing; there are {kind}s 0 to {count - 1}")
    return list(dict.fromkeys(chosen))


def _part(kind: str, part: str, count: int, names: Mapping[str, Sequence[int]]) -> Sequence[int]:
    if part in names:
        return names[part]
    if _INDEX.fullmatch(part):
        if not -count <= int(part) < count:
            raise InputError(f"{kind} {part} does not exist; there are {kind}s 0 to {count - 1}, or -{count} to -1")
        return [int(part) % count]
    bounds = _slice(kind, part, names)
    return range(count)[slice(*(None if bound is None else int(bound) for bound in bounds.groups()))]


def _slice(kind: str, part: str, names: Iterable[str]) -> re.Match[str]:
    bounds = _SLICE.fullmatch(part)
    if not bounds or bounds[3] in ("0", "+0", "-0"):
        raise InputError(unknown(f"{kind} selector", part, [*names, "an index", "a slice such as 0:10:2"]))
    return bounds


def check_selector(kind: str, selector: str, names: Iterable[str] = ()) -> None:
    """Check a selector without knowing how many layers or tokens there are.

    Args:
        kind: as in ``select``.
        selector: the selector.
        names: additional names.

    Raises:
        InputError: if a part is not a selector.
    """
    known = ["all", *names]
    for part in (part.strip() for part in selector.split(",")):
        if part not in known and not _INDEX.fullmatch(part):
            _slice(kind, part, known)


def selector_words(chosen: str | int | Sequence[int]) -> str:
    """Return a selector as text; a list of indices is joined with commas.

    Raises:
        InputError: if it is something else, such as a module of a model.

    >>> selector_words([3, 7])
    '3,7'
    """
    if isinstance(chosen, str):
        return chosen
    listed = list(chosen) if isinstance(chosen, Sequence) else [chosen]
    for index in listed:
        if not isinstance(index, int) or isinstance(index, bool):
            raise InputError(
                f"a {type(index).__name__} is not an index: give an index, a list of indices, or a selector such as "
                "'0:10:2' or 'all'"
            )
    return ",".join(str(index) for index in listed)


def indices(kind: str, chosen: str | int | Sequence[int] | None, count: int) -> list[int]:
    """Return indices that are given in any form: an index, a list, a selector, or None for all.

    Args:
        kind: as in ``select``.
        chosen: an index and the entries of a list are returned as they are; the caller checks them.
        count: as in ``select``.

    Raises:
        InputError: as ``select`` and ``selector_words`` raise.

    >>> indices("layer", "all", 3), indices("layer", 2, 3)
    ([0, 1, 2], [2])
    """
    if chosen is None:
        return list(range(count))
    if isinstance(chosen, str):
        return select(kind, chosen, count)
    selector_words(chosen)  # raises InputError if an entry is not an index
    return [chosen] if isinstance(chosen, int) else list(chosen)
