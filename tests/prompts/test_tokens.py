import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.toy_tokenizers import TOKENIZERS, byte_level, sentence_piece, sentence_piece_model
from transformers import LlamaTokenizer

from interpret.errors import InputError
from interpret.prompts.chat import as_it_is, wrap
from interpret.prompts.tokens import select_tokens, tokenise

WORDS = ["Anna's", "apples,", "Eiffel", "Tower", "café:", "東京", "is", "Japan!", "F.C.", "x"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6, unique=True), data=st.data())
def test_a_subjects_tokens_cover_it_and_touch_nothing_more(kind, words, data):
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    text, subject = " ".join(words), " ".join(words[first : last + 1])
    prompt = tokenise(TOKENIZERS[kind], as_it_is(text), subject)
    decode = TOKENIZERS[kind].decode
    covered = decode([prompt.ids[i] for i in prompt.subject])
    assert subject in covered
    assert prompt.subject == list(range(prompt.subject[0], prompt.subject[-1] + 1))
    # Without its first or last token, part of the subject is missing; a SentencePiece space does not count.
    with_text = [i for i in prompt.subject if prompt.pieces[i].strip()]
    for part in (with_text[1:], with_text[:-1]):
        assert subject not in decode([prompt.ids[i] for i in part])


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
    assert tokenise(tokenizer, chat).ids == tokenizer(chat.text, add_special_tokens=False).input_ids
    assert tokenise(sentence_piece(), as_it_is("hello")).ids == sentence_piece()("hello").input_ids


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


def test_a_slow_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece_model())
    slow = LlamaTokenizer(vocab_file=str(tmp_path / "tokenizer.model"), legacy=True)
    message = "LlamaTokenizer does not report the character offsets of tokens; use a fast tokenizer"
    with pytest.raises(InputError, match=f"^{message}$"):
        tokenise(slow, as_it_is("hello"))


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(InputError, match="^prompt '' has no tokens$"):
        tokenise(byte_level(), as_it_is(""))
