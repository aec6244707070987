"""Parse selectors of layers and tokens, such as ``"0,5:20:5,-1"`` or ``"subject_last"``, into indices.

A selector is a comma-separated list. Each part is an index (a negative one counts from the end), a Python slice
``start:stop:step``, or a name; the name ``all`` always exists.
"""

import re
from collections.abc import Mapping, Sequence

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
    bounds = _SLICE.fullmatch(part)
    if not bounds or bounds[3] in ("0", "+0", "-0"):
        raise InputError(unknown(f"{kind} selector", part, [*names, "an index", "a slice such as 0:10:2"]))
    return range(count)[slice(*(None if bound is None else int(bound) for bound in bounds.groups()))]


def selector_words(chosen: str | Sequence[int]) -> str:
    """Return a selector as text; a list of indices is joined with commas.

    >>> selector_words([3, 7])
    '3,7'
    """
    return chosen if isinstance(chosen, str) else ",".join(str(index) for index in chosen)
