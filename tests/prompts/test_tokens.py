import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.prompts.chat import as_it_is, wrap
from interpret.prompts.spelling import join_pieces
from interpret.prompts.tokens import select_tokens, tokenise
from reference.toy_tokenizers import KINDS, byte_level, sentence_piece

WORDS = ["Anna's", "apples,", "Eiffel", "Tower", "café:", "東京", "is", "Japan!", "F.C.", "x"]


@pytest.mark.parametrize("kind", KINDS)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6, unique=True), data=st.data())
@pytest.mark.filterwarnings("ignore:the tokenizer appends")
def test_a_subjects_tokens_cover_it_and_touch_nothing_more(kind, words, data):
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    text, subject = " ".join(words), " ".join(words[first : last + 1])
    prompt = tokenise(KINDS[kind], as_it_is(text), subject)
    covered = join_pieces([prompt.pieces[i] for i in prompt.subject])
    assert subject in covered
    assert prompt.subject == list(range(prompt.subject[0], prompt.subject[-1] + 1))
    # Without its first or last token, part of the subject is missing; a token that is only a space does not count.
    with_text = [i for i in prompt.subject if prompt.pieces[i].strip()]
    for part in (with_text[1:], with_text[:-1]):
        assert subject not in join_pieces([prompt.pieces[i] for i in part])


def test_content_leaves_markup_and_special_tokens_out():
    tokenizer = byte_level(chat=True)
    prompt = tokenise(tokenizer, wrap(tokenizer, "I love pizza"))
    assert "".join(prompt.pieces[i] for i in prompt.content) == "I love pizza"
    raw = tokenise(sentence_piece(), as_it_is("I love pizza"))
    assert raw.pieces[0] == "<s>"
    assert list(raw.content) == list(range(1, len(raw.ids)))


def test_ids_are_those_the_model_would_be_given():
    tokenizer = byte_level(chat=True)
    chat = wrap(tokenizer, "I love pizza")
    assert list(tokenise(tokenizer, chat).ids) == tokenizer(chat.text, add_special_tokens=False).input_ids
    assert list(tokenise(sentence_piece(), as_it_is("hello")).ids) == sentence_piece()("hello").input_ids


def test_selectors_name_tokens():
    prompt = tokenise(byte_level(), as_it_is("The Eiffel Tower is in"), "Eiffel Tower")
    last = len(prompt.ids) - 1
    table = {
        "all": list(range(last + 1)),
        "last": [last],
        "-1": [last],
        "content": list(range(last + 1)),
        "subject": list(prompt.subject),
        "subject_last": [prompt.subject[-1]],
        "0,subject_last": [0, prompt.subject[-1]],
    }
    assert {selector: select_tokens(selector, prompt) for selector in table} == table
    assert prompt.pieces[prompt.subject[-1]].strip() in "Tower"


def test_a_subject_selector_needs_a_subject():
    message = "token selector 'subject_last' needs a \"subject\", which this prompt does not have"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        select_tokens("subject_last", tokenise(byte_level(), as_it_is("hello")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "to be or not to be",
            "subject 'be' occurs more than once in the prompt 'to be or not to be'; add words until it is unique",
        ),
        ("hello", "subject 'be' is not a part of the prompt 'hello'"),
    ],
)
def test_a_subject_must_be_found_once(text, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        tokenise(byte_level(), as_it_is(text), "be")


def test_a_subject_is_not_looked_for_in_the_markup():
    tokenizer = byte_level(chat=True)
    prompt = tokenise(tokenizer, wrap(tokenizer, "a user"), "user")
    assert prompt.text.count("user") == 2
    assert set(prompt.subject) <= set(prompt.content)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(InputError, match="^prompt '' has no tokens$"):
        tokenise(byte_level(), as_it_is(""))


@pytest.mark.parametrize(
    ("prompt", "subject", "difference"),
    [
        ("Is it Anna’s?", "Anna's", "'Anna’s', which differs in U+2019 (RIGHT SINGLE QUOTATION MARK) for U+0027 (APO"),
        ("The Eiffel  Tower is", "Eiffel Tower", "'Eiffel  Tower', which differs in its spaces"),
        (
            "The Eiffel\u00a0Tower is",
            "Eiffel Tower",
            "which differs in U+00A0 (NO-BREAK SPACE) for U+0020",
        ),
        (
            "The cafe\u0301 is",
            "café",
            "which differs in U+0065 (LATIN SMALL LETTER E), U+0301 (COMB",
        ),
        ("The TOWER is", "Tower", "'TOWER', which differs in U+004F (LATIN CAPITAL LETTER O), U+0057"),
    ],
)
def test_a_subject_that_only_looks_like_a_part_is_refused_with_what_differs(prompt, subject, difference):
    with pytest.raises(InputError, match=re.escape(f"is not a part of the prompt {prompt!r}; it has ")) as error:
        tokenise(byte_level(), as_it_is(prompt), subject)
    assert difference in str(error.value)
