"""Search for words in a text; only whole words match."""

import re
from unicodedata import normalize

from interpret.errors import InputError


def contains_words(text: str, words: str) -> bool:
    """Tell whether a text contains words, as whole words and in this order, ignoring case.

    Numbers, too, match only as a whole: 0 does not match in 10, 0.5 or 1,000. In scripts without spaces, a run of
    letters counts as one word.

    >>> contains_words("It is in New  York.", "new york"), contains_words("the Yorkers", "York")
    (True, False)
    """
    return bool(pattern(words).search(_folded(text)))


def starts_with_words(text: str, words: str) -> bool:
    """Tell whether a text starts with words; only whitespace, quotes and brackets may precede them."""
    found = pattern(words).search(_folded(text))
    return found is not None and not found.string[: found.start()].strip(" \t\n\"'“‘«(")


def pattern(words: str) -> re.Pattern[str]:
    """Return the regular expression that finds words in a case-folded text.

    Raises:
        InputError: if there are no words.
    """
    parts = [re.escape(part) for part in _folded(words).split()]
    if not parts:
        raise InputError(f"{words!r} contains no word to search for")
    before = r"(?<!\w)" + (r"(?<!\d[.,])" if parts[0][0].isdigit() else "")
    after = r"(?!\w)" + (r"(?![.,]\d)" if parts[-1][-1].isdigit() else "")
    return re.compile(before + r"\s+".join(parts) + after)


def _folded(text: str) -> str:
    return normalize("NFKC", text).casefold()
