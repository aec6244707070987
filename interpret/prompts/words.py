"""Do these words stand in that text? Whole words only."""

import re
from unicodedata import normalize

from interpret.errors import InputError


def contains_words(text: str, words: str) -> bool:
    """Tell whether a text contains words as whole words, in their order, in capitals or not.

    A number is whole if no digit, comma or point goes on with it: there is no 0 in 10, 0.5 or 1,000. In scripts
    without spaces a run of letters is one word.

    >>> contains_words("It is in New  York.", "new york"), contains_words("the Yorkers", "York")
    (True, False)
    """
    return bool(pattern(words).search(_folded(text)))


def starts_with_words(text: str, words: str) -> bool:
    """Tell whether a text opens with words, after space, quotes or a bracket at most."""
    found = pattern(words).search(_folded(text))
    return found is not None and not found.string[: found.start()].strip(" \t\n\"'“‘«(")


def pattern(words: str) -> re.Pattern[str]:
    """Return the pattern that finds words in a folded text.

    Raises:
        InputError: if there is no word among them.
    """
    parts = [re.escape(part) for part in _folded(words).split()]
    if not parts:
        raise InputError(f"{words!r} holds no word to look for")
    before = r"(?<!\w)" + (r"(?<!\d[.,])" if parts[0][0].isdigit() else "")
    after = r"(?!\w)" + (r"(?![.,]\d)" if parts[-1][-1].isdigit() else "")
    return re.compile(before + r"\s+".join(parts) + after)


def _folded(text: str) -> str:
    return normalize("NFKC", text).casefold()
