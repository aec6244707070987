"""Messages about a part that is not found in a text, although a person may see it there."""

from unicodedata import name, normalize

from interpret.errors import brief

_PLAIN = str.maketrans("‘’‚‛′“”„‟″«»‐‑‒–—−", '\'\'\'\'\'"""""""------')
_LONGEST = 2000
"""Longer texts are not searched for a look-alike: the search compares all places."""


def not_a_part(what: str, part: str, text: str) -> str:
    """Return the message that a part does not occur in a prompt; of a look-alike, it says what differs.

    Args:
        what: what the part is, such as "subject".
        part: the part.
        text: the prompt.

    >>> not_a_part("subject", "Anna's", "Is it Anna’s?").split("; ")[1]
    "it has 'Anna’s', which differs in U+2019 (RIGHT SINGLE QUOTATION MARK) for U+0027 (APOSTROPHE)"
    """
    return f"{what} {brief(part)} is not a part of the prompt {brief(text)}{instead(part, text)}"


def instead(part: str, text: str) -> str:
    """Return what a text has instead of a part, to be added to a message; "" if it has no look-alike."""
    found = _lookalike(part, text) if len(text) <= _LONGEST else None
    return "" if found is None else f"; it has {brief(found)}, which differs in {_difference(found, part)}"


def _folded(text: str) -> str:
    return " ".join(normalize("NFKC", text.translate(_PLAIN)).casefold().split())


def _lookalike(part: str, text: str) -> str | None:
    """Return the first place of a text that looks like a part; None if there is none."""
    wanted = _folded(part)
    if not wanted or wanted not in _folded(text):
        return None
    for start in range(len(text)):
        for end in range(start + 1, min(len(text), start + 3 * len(part)) + 1):
            if not text[start].isspace() and _folded(text[start:end]) == wanted:
                return text[start:end]
    return None


def _difference(found: str, wanted: str) -> str:
    """Name the characters that one of two look-alikes has, and the other has not."""
    here, there = (sorted(set(one) - set(other), key=one.index) for one, other in ((found, wanted), (wanted, found)))
    if not here and not there:
        return "its spaces"
    named = [", ".join(f"U+{ord(char):04X} ({name(char, 'unnamed')})" for char in chars) for chars in (here, there)]
    return " for ".join(named) if all(named) else f"{named[0] or named[1]}, which only one of them has"
