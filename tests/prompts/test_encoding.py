import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from interpret.errors import InputError
from interpret.prompts.encoding import continuation, encode, given_ids, token_ids
from interpret.prompts.scripts import joined
from interpret.prompts.spelling import join_pieces
from reference.toy_tokenizers import (
    CLOSING,
    KINDS,
    byte_level,
    byte_level_closing,
    sentence_piece,
    word_piece,
    word_tokenizer,
)

pytestmark = pytest.mark.filterwarnings("ignore:the tokenizer appends")
CHARACTERS = st.text(st.sampled_from("ab é東京\n\tم😀.,'[]"), min_size=1, max_size=16)


@pytest.mark.parametrize("kind", KINDS)
@given(text=CHARACTERS)
def test_ids_are_those_of_the_stock_tokenizer_without_what_it_appends(kind, text):
    stock = KINDS[kind](text).input_ids
    assert list(token_ids(KINDS[kind], text)) == (stock[:-1] if kind in CLOSING else stock)
    bare = KINDS[kind](text, add_special_tokens=False).input_ids
    assert list(token_ids(KINDS[kind], text, add_special_tokens=False)) == bare


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_with_the_opening_has_it_once(kind):
    tokenizer = KINDS[kind]
    ids = token_ids(tokenizer, "<s>hello Tower")
    assert ids.count(tokenizer.bos_token_id) == (0 if kind == "byte_level" else 1)
    if token_ids(tokenizer, "hello")[0] == tokenizer.bos_token_id:
        assert list(ids) == tokenizer("<s>hello Tower", add_special_tokens=False).input_ids


def test_what_a_tokenizer_appends_is_left_out_and_said():
    message = "^the tokenizer appends </s> to every text; it is left out, so that the model continues the text$"
    with pytest.warns(UserWarning, match=message):
        ids = token_ids(byte_level_closing(), "hello")
    assert list(ids) == byte_level_closing()("hello").input_ids[:-1]
    # An end token in the text itself is kept.
    assert token_ids(byte_level_closing(), "hello</s>")[-1] == byte_level_closing().eos_token_id


@pytest.mark.parametrize("text", ["<s>", "<s><s>", "</s>", "hello", ""])
@pytest.mark.filterwarnings("error")
def test_no_end_token_is_missed_where_none_is_appended(text):
    for tokenizer in (sentence_piece(), KINDS["llama_3"]):
        encoding = encode(tokenizer, text)
        stock = tokenizer(text).input_ids
        assert list(encoding.ids) == (stock[1:] if text.startswith("<s>") else stock)
        assert encoding.n_opening == 1


@pytest.mark.parametrize("text", ["hello", "[gMASK]<sop>hello", "<sop>hello"])
def test_several_opening_tokens_are_read_once(text):
    # As in GLM, whose texts begin with two special tokens.
    core = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    core.add_special_tokens(["[gMASK]", "<sop>"])
    opening = [(name, core.token_to_id(name)) for name in ("[gMASK]", "<sop>")]
    core.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=opening)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert list(token_ids(tokenizer, text)) == tokenizer("hello").input_ids
    assert encode(tokenizer, text).spans()[:2] == [(0, 0), (0, 0)]


def test_openings_cover_no_characters():
    for text in ("hello Tower", "<s>hello Tower"):
        encoding = encode(sentence_piece(), text)
        assert encoding.n_opening == 1
        assert encoding.spans()[0] == (0, 0)
        assert "".join(encoding.pieces()).replace(" ", "") == "<s>helloTower"


def test_a_word_piece_tokenizer_is_refused():
    with pytest.raises(
        InputError, match=r"^\w+ is a WordPiece tokenizer, whose tokens do not keep the text; use a mod"
    ):
        token_ids(word_piece(), "the tower")


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        ("The capital of France is", "Paris", "The capital of France is Paris"),
        ("The capital of France is ", "Paris", "The capital of France is Paris"),
        ("I went to Paris", ", France", "I went to Paris, France"),
        ("It is Anna", "'s", "It is Anna's"),
        ("hello", "<|im_end|>", "hello<|im_end|>"),
        ("法国的首都是", "巴黎", "法国的首都是巴黎"),
        ("東京 is", "巴黎", "東京 is巴黎"),
        ("عاصمة فرنسا هي", "باريس", "عاصمة فرنسا هي باريس"),
        ("ประเทศ", "ไทย", "ประเทศไทย"),
        ("서울은", "한국의", "서울은 한국의"),
        ("He was born in", "1961", "He was born in 1961"),
        ("x =", " 3", "x = 3"),
        ("line", "\nnext", "line\nnext"),
        ("cafe", "\u0301 au lait", "cafe\u0301 au lait"),
        ("नमस्त", "े", "नमस्ते"),
        ("スーパー", "is", "スーパーis"),
        ("Italy's capital,", "Rome", "Italy's capital, Rome"),
        ('His position is that of a "superior"', "pope", 'His position is that of a "superior" pope'),
        ('He said "', "Yes", 'He said "Yes'),
        ("The capital:", "Rome", "The capital: Rome"),
        ("It is far away.", "We walk", "It is far away. We walk"),
        ("np.", "array", "np.array"),
        ("It costs 1,", "000", "It costs 1,000"),
        ("At 10:", "30", "At 10:30"),
        ("In 1961,", "Rome", "In 1961, Rome"),
        ("f(", "x", "f(x"),
        ("法国的首都，", "巴黎", "法国的首都，巴黎"),
        ("عاصمة فرنسا،", "باريس", "عاصمة فرنسا، باريس"),
    ],
)
def test_a_space_is_added_only_before_a_word_of_a_script_with_spaces(prompt, words, expected):
    assert joined(prompt, words) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("I went to Paris", ", France"),
        ("東京は", "巴黎"),
        ("hello", "Tower"),
        ("Anna", "'s"),
        ("a", "\nb"),
        ("x", "😀"),
    ],
)
def test_a_continuation_is_the_rest_of_the_joined_text(kind, prompt, words):
    tokenizer = KINDS[kind]
    before, whole = token_ids(tokenizer, prompt), token_ids(tokenizer, joined(prompt, words))
    if whole[: len(before)] == before:
        assert continuation(tokenizer, prompt, words) == whole[len(before) :]
    else:
        with pytest.raises(InputError, match=f"^answer {re.escape(repr(words))} merges with the last token"):
            continuation(tokenizer, prompt, words)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "target has no token ids; give at least one"),
        ([3, 420], "target has the token id 420; this tokenizer has ids 0 to 383"),
        ([True], "target has the token id True; this tokenizer has ids 0 to 383"),
        ([1.0], "target has the token id 1.0; this tokenizer has ids 0 to 383"),
        (None, "target is None; give a string, or a list of token ids"),
    ],
)
def test_ids_that_do_not_exist_are_refused(ids, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        given_ids(byte_level(), ids, "target")


def test_an_id_in_a_gap_is_refused_and_one_after_it_is_read():
    core = Tokenizer(models.WordLevel({"<pad>": 0, "hello": 7}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert given_ids(tokenizer, [7], "target") == (7,)
    with pytest.raises(
        InputError, match="^target has the token id 3; this tokenizer has ids 0 to 7, but not this one$"
    ):
        given_ids(tokenizer, [3], "target")


def test_pieces_of_a_tokenizer_that_does_not_tell_its_spaces_have_those_of_the_text():
    assert encode(word_tokenizer(opens=True), "w3  w4\nw5").pieces() == ["w1", "w3", "  w4", "\nw5"]


def test_a_tokenizer_that_drops_characters_is_refused_where_characters_matter():
    # Without an unknown token and byte tokens, BPE leaves characters out, and shifts the offsets after them.
    core = Tokenizer(models.BPE({"h": 0, "i": 1, "\u2581": 2}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert encode(tokenizer, "hi hi").spans()[-1] == (4, 5)
    with pytest.raises(InputError, match="^\\w+ drops characters of the text 'h東i hi', so it cannot"):
        encode(tokenizer, "h東i hi").spans()


@pytest.mark.parametrize(("text", "composed"), [("cafe\u0301 is", "café"), ("\u1112\u1161\u11ab is", "한")])
def test_characters_that_a_normaliser_composes_belong_to_their_token(text, composed):
    core = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    core.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    encoding = encode(tokenizer, text)
    end = text.index(" ")
    inside = [at for at, (first, last) in enumerate(encoding.spans()) if first < end]
    assert join_pieces([encoding.pieces()[at] for at in inside]) == composed
    assert encoding.spans()[inside[-1]][1] == end
