"""Words for layers and tokens, as in ``"0,5:20:5,-1"`` or ``"subject_last"`` -> indices.

A selector is a list of parts between commas: an index, negative ones from the end; a Python slice
``start:stop:step``; or a name, of which ``all`` always exists.
"""

import re
from collections.abc import Mapping, Sequence

from interpret.errors import InputError, unknown

_INDEX = re.compile(r"[+-]?\d+")
_SLICE = re.compile(r"([+-]?\d+)?:([+-]?\d+)?(?::([+-]?\d+)?)?")


def select(kind: str, selector: str, count: int, names: Mapping[str, Sequence[int]] | None = None) -> list[int]:
    """Return the indices a selector names, each once, in the order written.

    Args:
        kind: what is selected, for messages: "layer" or "token".
        selector: the words.
        count: how many there are; indices 0 to ``count - 1`` exist.
        names: further names, and what each stands for.

    Raises:
        InputError: for a part that is no selector, an index that does not exist, or if nothing is selected.

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
