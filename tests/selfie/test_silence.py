"""Texts that say nothing, in several writing systems."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from interpret.selfie.silence import FEWEST_LETTERS, FEWEST_WORDS, says_nothing

SPACED = {
    "Latin": "abcdefghijklmnopqrstuvwxyzäéß",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщыэюя",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "Hindi": "अआइईउऊएकखगघचछजझटठडढणतथदधनपफ",
    "Korean": "가나다라마바사아자차카타파하",
}
UNSPACED = {
    "Chinese": "日本東京法国巴黎塔城市比萨饼",
    "Japanese": "あいうえおかきくけこアイウエオ",
    "Thai": "กขคงจฉชซญฎฏฐ",
    "emoji": "🍕😀🚀🗼🐈☀✈",
}
PUNCTUATION = " \t\n.,;:!?-–—_*#'\"“”«»()[]{}|/\\=+<>~^`$%&。、！？「」…·،؟।\u200d\ufe0f\ufffd■°"
BETWEEN = st.text(PUNCTUATION, min_size=1, max_size=3)


def words_of(alphabet: str) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=1, max_size=6)


WORDS = st.sampled_from([*SPACED.values()]).flatmap(words_of)
CHARACTERS = st.sampled_from([*UNSPACED.values()]).flatmap(words_of)


@given(st.text(PUNCTUATION, max_size=20))
def test_a_text_without_words_says_nothing(text):
    assert says_nothing(text)


@given(st.lists(WORDS, min_size=1, max_size=4), BETWEEN, st.integers(FEWEST_WORDS, 6), st.data())
def test_a_phrase_over_and_over_says_nothing_also_if_its_end_is_cut(phrase, between, times, data):
    whole = between.join(phrase * times)
    assert says_nothing(whole)
    assert says_nothing(whole.title())
    cut = between + between.join(phrase)[: data.draw(st.integers(0, 12))]
    assert says_nothing(whole + cut)


@given(CHARACTERS, st.integers(FEWEST_WORDS, 6), st.text(PUNCTUATION, max_size=2))
def test_so_do_characters_over_and_over_in_scripts_without_spaces(phrase, times, between):
    assert says_nothing(between.join([phrase] * times))


@pytest.mark.parametrize("before", ["The", "The Tower of London is a"])
def test_a_short_beginning_does_not_matter_before_a_long_repetition(before):
    n_before = len(before.split())
    assert says_nothing(before + " Tower" * 8 * n_before)
    assert not says_nothing(before + " Tower" * (8 * n_before - 1))


@given(WORDS, st.integers(FEWEST_LETTERS, 9))
def test_so_does_a_token_over_and_over_without_spaces(word, times):
    assert says_nothing(word * times)


@given(st.lists(WORDS | CHARACTERS, min_size=1, max_size=6), BETWEEN, st.text(PUNCTUATION, max_size=3))
def test_words_that_are_not_repeated_say_something(words, between, around):
    letters = "".join(words)
    assume(len(set(letters)) == len(letters))  # then nothing is repeated, in words or in letters
    assert not says_nothing(around + between.join(words) + around)


@pytest.mark.parametrize("alphabet", [*SPACED.values(), *UNSPACED.values()], ids=[*SPACED, *UNSPACED])
def test_one_word_says_something_and_punctuation_does_not_matter(alphabet):
    assert not says_nothing(alphabet[:3])
    assert not says_nothing(f"\n\n“{alphabet[0]}”.")
    assert not says_nothing(alphabet[0] * 2)


@given(st.text(max_size=40))
def test_any_text_gets_an_answer_that_its_whitespace_does_not_change(text):
    assert says_nothing(text) == says_nothing(f"\n {text} \t")


@pytest.mark.parametrize(
    ("text", "nothing"),
    [
        (".", True),
        (" is is is is", True),
        ("\n\nIs is, IS is i", True),
        ("a tall tower. A tall tower, a tall tower a ta", True),
        ("0000000", True),
        ("🇯🇵🇯🇵🇯🇵", True),
        ("مَمَمَمَمَ", True),
        ("Walla Walla", False),
        ("谢谢", False),
        ("777", False),
        ("e\u0301te\u0301", False),
        ("a city in Japan, a city in Japan", False),
        ("is is is a verb", False),
    ],
)
def test_examples(text, nothing):
    assert says_nothing(text) == nothing
