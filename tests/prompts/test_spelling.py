import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from interpret.prompts.spelling import aligned_spans, decoded, join_pieces, piece, pieces, words
from reference.toy_tokenizers import KINDS, byte_level, gemma, sentence_piece, word_tokenizer

TEXTS = {
    "Latin": "The Eiffel Tower is in the city of Paris.",
    "accents": "Naïve café: Ærøskøbing, Łódź",
    "Chinese and Japanese": "東京は日本の首都です。法国的首都是巴黎",
    "Arabic": "مرحبا بالعالم",
    "emoji": "I love 🍕👩\u200d👩\u200d👧 and 😀!",
    "code": "def f(x):\n\treturn  x ** 2  # no\n\n",
    "markup": "<s>[INST] What is  it? [/INST]</s>\n",
}


def own_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_pieces_are_the_text_and_hold_no_marks_of_the_tokenizer(kind, text):
    tokenizer = KINDS[kind]
    found = pieces(tokenizer, own_ids(tokenizer, text), text)
    joined = join_pieces(found)
    # A token that is only the space that the tokenizer added, to the text or after a special token, keeps it.
    assert joined.removeprefix(" ").replace("</s> ", "</s>") == text, found
    assert not any(mark in joined for mark in "\u2581\u0120\u010a")


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.sampled_from("ab é東京\n\tم😀.<s>"), min_size=1, max_size=12))
def test_spans_say_which_characters_a_token_covers(kind, text):
    tokenizer = KINDS[kind]
    ids = own_ids(tokenizer, text)
    spans = aligned_spans(tokenizer, text, ids)
    assert len(spans) == len(ids)
    assert all(first <= end for first, end in spans)
    covered = {at for first, end in spans for at in range(first, end)}
    assert {at for at, char in enumerate(text) if not char.isspace()} <= covered
    # A token whose span has no other token in it decodes to the span's text.
    for token, (first, end) in zip(ids, spans, strict=True):
        if first < end and sum(one < end and other > first for one, other in spans) == 1:
            assert tokenizer.decode([token]).strip() == text[first:end].strip()


def test_a_character_that_several_tokens_share_is_named_in_each():
    ids = own_ids(byte_level(), "😀")
    assert pieces(byte_level(), ids) == ["😀 1/4", "😀 2/4", "😀 3/4", "😀 4/4"]
    assert piece(byte_level(), ids[0]) == "<0xF0>"
    assert join_pieces(pieces(byte_level(), ids)) == "😀"


def test_a_space_at_the_beginning_is_kept_where_the_text_has_it():
    tokenizer = sentence_piece()
    ids = own_ids(tokenizer, "hello hello")
    assert pieces(tokenizer, ids)[0].startswith(" ")  # as after a prompt
    assert "".join(pieces(tokenizer, ids, "hello hello")) == "hello hello"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital\nThe city", ["The", " capital", "\nThe", " city"]),
        ("a\tcafé", ["a", "\tcafé"]),
        ("hello  Tower", ["hello", "  Tower"]),
        ("Anna's apples,", ["Anna's", " apples,"]),
    ],
)
def test_words_begin_with_their_whitespace(kind, text, expected):
    tokenizer = KINDS[kind]
    ids = own_ids(tokenizer, text)
    numbers, found = words(tokenizer, ids), pieces(tokenizer, ids, text)
    joined = ["" for _ in range(numbers[-1] + 1)]
    for number, one in zip(numbers, found, strict=True):
        joined[number] += one
    assert [join_pieces([word]).removeprefix(" ") if i == 0 else word for i, word in enumerate(joined)] == expected


def test_special_tokens_are_words_of_their_own_and_markup_is_not():
    tokenizer = gemma()
    ids = [*own_ids(tokenizer, "hello"), tokenizer.eos_token_id, *own_ids(tokenizer, "[INST]")]
    numbers = words(tokenizer, ids)
    at = ids.index(tokenizer.eos_token_id)
    assert (numbers[at - 1], numbers[at], numbers[at + 1], numbers[-1]) == (0, 1, 2, 2)


def test_scripts_without_spaces_have_a_word_for_each_token():
    tokenizer = gemma()
    ids = own_ids(tokenizer, "東京 is")
    assert words(tokenizer, ids)[:2] == [0, 1]
    assert len(set(words(byte_level(), own_ids(byte_level(), "東")))) == 1  # parts of a character


def test_a_tokenizer_that_does_not_tell_its_bytes_decodes_each_token():
    tokenizer = word_tokenizer()
    assert pieces(tokenizer, [3, 4]) == ["w3", "w4"]
    assert words(tokenizer, [3, 4]) == [0, 1]


def word_texts(tokenizer, text):
    ids = own_ids(tokenizer, text)
    parts = pieces(tokenizer, ids, text)
    numbers = words(tokenizer, ids)
    return [
        join_pieces([part for part, number in zip(parts, numbers, strict=True) if number == word])
        for word in range(numbers[-1] + 1)
    ]


@pytest.mark.parametrize("kind", ["byte_level", "llama_3", "gemma"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("法国is", ["法", "国", "is"]),  # Latin after Chinese
        ("is法国", ["is", "法", "国"]),
        ("法国, is", ["法", "国,", " is"]),
        ("スーパー", ["ス", "ー", "パ", "ー"]),
        ("กิน", ["กิ", "น"]),  # a vowel sign belongs to its consonant
        ("cafe\u0301 is", ["cafe\u0301", " is"]),
    ],
)
def test_words_of_mixed_scripts(kind, text, expected):
    assert word_texts(KINDS[kind], text) == expected


def with_added(*tokens):
    core = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    for token in tokens:
        tokenizer.add_tokens(token, special_tokens=token.special)
    return tokenizer


def test_chat_markup_is_a_word_of_its_own_even_if_it_has_no_name():
    # As in Llama 3, whose markup is marked as special, but is not in all_special_ids.
    core = with_added(AddedToken("<|header|>", special=True)).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.all_special_ids == []
    assert word_texts(tokenizer, "<|header|>user<|header|>\n\nhello") == [
        "<|header|>",
        "user",
        "<|header|>",
        "\n\nhello",
    ]


def test_added_tokens_are_known_as_soon_as_they_are_added():
    tokenizer = with_added()
    assert "".join(pieces(tokenizer, own_ids(tokenizer, "naïve"))).startswith("na")
    tokenizer.add_tokens(AddedToken("naïve", normalized=False))
    assert pieces(tokenizer, own_ids(tokenizer, "naïve naïve"))[0] == "naïve"
    tokenizer.add_tokens(AddedToken("<|x|>", special=True), special_tokens=True)
    assert word_texts(tokenizer, "a<|x|>b") == ["a", "<|x|>", "b"]


def test_ids_with_gaps_are_read():
    core = Tokenizer(models.WordLevel({"<pad>": 0, "hello": 7}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<pad>")
    assert (len(tokenizer), decoded(tokenizer, [0, 7, 3, 9])) == (2, "<pad> hello")


def test_long_vocabularies_and_texts_take_no_longer(monkeypatch):
    """A vocabulary is never listed for a token: with thousands of added tokens that takes a tenth of a second."""
    tokenizer = with_added(*(AddedToken(f"<|{number}|>", special=True) for number in range(50)))
    piece(tokenizer, 300)
    for slow in ("__len__", "get_vocab", "get_added_vocab", "added_tokens_decoder"):
        monkeypatch.setattr(type(tokenizer), slow, property(lambda _: pytest.fail("the vocabulary is listed")))
    assert piece(tokenizer, 300) == decoded(tokenizer, [300])
