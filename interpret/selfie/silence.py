"""Texts that say nothing: without words, or one word or phrase over and over.

Models write such texts with high probability when a state pushes them out of their usual inputs, so the controls alone
do not tell them from interpretations.
"""

from collections.abc import Sequence
from unicodedata import category, normalize

from interpret.prompts.scripts import combines, in_word, without_spaces

FEWEST_WORDS = 3
"""How often words are repeated in a text that says nothing. Twice is ordinary language: Walla Walla, 妈妈."""
FEWEST_LETTERS = 4
"""How often letters are repeated in a text that says nothing, as in "isisisis". Three times is: 777, www."""
LONGEST_BEGINNING = 1 / 8
"""How many words may stand before words that are repeated, as a share of these: "The Tower Tower Tower ..."."""
_PICTURES = ((0x2600, 0x27BF), (0x1F000, 0x1FAFF))
"""Unicode blocks of pictures that say something by themselves, such as ☀ and 🍕; other symbols count as punctuation."""


def says_nothing(text: str) -> bool:
    """Tell whether a text has no words, or consists of one word or phrase three times or more.

    Case, whitespace and punctuation do not matter, the last repetition may be incomplete, and a few words may stand
    before a long repetition. Every character of scripts without spaces counts as a word, and so does every emoji. Nor
    does a text say anything whose letters, without the spaces, are the same ones four times or more.

    >>> says_nothing(" ..."), says_nothing("is is is is"), says_nothing("哈哈哈"), says_nothing("the city of Paris")
    (True, True, True, False)
    """
    words = _words(normalize("NFKC", text).casefold())
    letters = "".join(words)
    return _repeats(words) or len(letters) >= FEWEST_LETTERS * _period(letters)


def _repeats(words: Sequence[str]) -> bool:
    """Return whether words are repeated often enough, from a beginning on that is short enough."""
    starts = range(1 + int(len(words) * LONGEST_BEGINNING / (1 + LONGEST_BEGINNING)))
    return any(len(words) - start >= FEWEST_WORDS * _period(words[start:]) for start in starts)


def _words(text: str) -> list[str]:
    """Return the words of a text; a combining mark belongs to the character before it."""
    words: list[str] = []
    within = False  # whether the next letter continues the last word
    for char in text:
        if combines(char) and words:
            words[-1] += char
            continue
        letter = in_word(char) and not combines(char)
        spaced = letter and not without_spaces(char)
        if spaced and within:
            words[-1] += char
        elif letter or _is_picture(char):
            words.append(char)
        within = spaced
    return words


def _is_picture(char: str) -> bool:
    return category(char) == "So" and any(first <= ord(char) <= last for first, last in _PICTURES)


def _period(parts: Sequence[str]) -> int:
    """Return the smallest number p of parts after which a text repeats itself: part i is part i - p for all i >= p.

    The last part may be the beginning of one: the end of a text is often cut.
    """
    repeats = (
        p for p in range(1, len(parts)) if parts[p:-1] == parts[: -p - 1] and parts[-p - 1].startswith(parts[-1])
    )
    return next(repeats, len(parts))
