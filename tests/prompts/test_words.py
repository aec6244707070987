"""Words are found only as whole words, in any case and Unicode form."""

import pytest

from interpret.prompts.words import contains_words


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("It is in Paris.", "Paris", True),
        ("PARIS", "paris", True),
        ("the Parisian", "Paris", False),
        ("10", "0", False),
        ("0", "0", True),
        ("a 0.", "0", True),
        ("0.5", "0", False),
        ("1,000", "1", False),
        ("1.0", "0", False),
        ("New\n York's", "new york", True),
        ("New, York", "New York", False),
        ("(C++)", "c++", True),
        ("a.b", "a+b", False),
        ("score: +1", "+1", True),
        ("Bogota\u0301 is", "Bogotá", True),
        ("", "x", False),
    ],
)
def test_words_are_found_whole(text, words, found):
    assert contains_words(text, words) is found
