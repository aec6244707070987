"""Writing systems: which characters belong to words, and which scripts put spaces between words."""

from unicodedata import category, name

_WITHOUT_SPACES = (
    "CJK ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "IDEOGRAPHIC ", "BOPOMOFO ", "YI ",
    "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "TAI ", "NEW TAI LUE ", "JAVANESE ", "BALINESE ",
)  # fmt: skip
"""How the Unicode names of characters begin in scripts that do not put spaces between words."""


def in_word(char: str) -> bool:
    """Tell whether a character is part of a word: a letter, a digit or a combining mark.

    >>> in_word("é"), in_word("7"), in_word("'"), in_word("東")
    (True, True, False, True)
    """
    return category(char)[0] in "LNM"


def combines(char: str) -> bool:
    """Tell whether a character belongs to the one before it: an accent, a vowel sign, the end of a Hangul syllable."""
    return category(char)[0] == "M" or "\u1160" <= char <= "\u11ff"


def without_spaces(char: str) -> bool:
    """Tell whether a character belongs to a script that does not put spaces between words, such as Chinese or Thai.

    >>> without_spaces("東"), without_spaces("é"), without_spaces("한")
    (True, False, False)
    """
    return name(char, "").startswith(_WITHOUT_SPACES)


def joined(prompt: str, words: str) -> str:
    """Return a prompt and the words that continue it as one text.

    The words are used as they are. A space is added only between two words of scripts with spaces, and between a
    punctuation mark that ends a phrase and such a word; words that begin with a combining mark continue the last word
    of the prompt.

    >>> joined("The Eiffel Tower is in", "Paris"), joined("I went to Paris", ", France")
    ('The Eiffel Tower is in Paris', 'I went to Paris, France')
    >>> joined("Italy's capital,", "Rome"), joined("It takes 1,", "000 hours"), joined("x = np.", "array")
    ("Italy's capital, Rome", 'It takes 1,000 hours', 'x = np.array')
    """
    begins_a_word = bool(words) and _of_spaced_word(words[0]) and not combines(words[0])
    apart = begins_a_word and bool(prompt) and (_of_spaced_word(prompt[-1]) or _ends_a_phrase(prompt, words[0]))
    return prompt + (" " if apart else "") + words


def _of_spaced_word(char: str) -> bool:
    return in_word(char) and not without_spaces(char)


def _ends_a_phrase(prompt: str, following: str) -> bool:
    """Tell whether a prompt ends in a mark that a space separates from the next word, which begins with a character.

    A mark between two digits is part of a number, a full stop before a small letter of a name such as ``np.array``.
    """
    mark = prompt[-1]
    if mark in ",.:" and prompt[-2:-1].isdigit() and following.isdigit():
        return False
    if mark == ".":
        return following.isupper()
    if mark == '"':
        return prompt.count(mark) % 2 == 0
    return mark in ",;:!?)…،؛؟"
