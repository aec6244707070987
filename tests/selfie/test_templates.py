import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.selfie.templates import SHIPPED, InterpretationPrompt, interpretation_prompt
from reference.toy_tokenizers import CLOSING, KINDS, byte_level, sentence_piece

TEXTS = st.sampled_from(
    ["[INST]", "[/INST] Sure", "hello ", " ", "?", "café", "東京", "\n", "def f():\n\treturn ", "😀"]
)


@pytest.mark.parametrize("kind", KINDS)
@given(sequence=st.lists(TEXTS | st.just(0), min_size=1, max_size=7).filter(lambda parts: 0 in parts))
@pytest.mark.filterwarnings("ignore:the tokenizer appends")
def test_the_ids_are_those_of_the_joined_text_and_slots_are_placeholders(kind, sequence):
    tokenizer = KINDS[kind]
    prompt = InterpretationPrompt(tokenizer, sequence)
    stock = tokenizer(prompt.text).input_ids
    assert list(prompt.ids) == (stock[:-1] if kind in CLOSING else stock)
    assert len(prompt.slots) == sequence.count(0)
    assert {tokenizer.decode([prompt.ids[slot]]).strip() for slot in prompt.slots} == {"_"}
    assert sorted(set(prompt.slots)) == list(prompt.slots)
    # The text is that of the parts and placeholders, in order; only single spaces are added.
    parts = "".join("_" if part == 0 else part for part in sequence)
    assert "".join(prompt.text.split()) == "".join(parts.split())
    assert prompt.text.count(" ") <= parts.count(" ") + sequence.count(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("What is{slots}?", "What is _ _ _?"),
        ("[INST]{slots} [/INST] Sure", "[INST] _ _ _ [/INST] Sure"),
        ("word {slots} is", "word _ _ _ is"),
        ("{slots} is", "_ _ _ is"),
    ],
)
@pytest.mark.filterwarnings("ignore:the tokenizer appends")
def test_no_space_is_doubled_beside_slots(kind, words, text):
    prompt = interpretation_prompt(KINDS[kind], words, n_slots=3)
    stock = KINDS[kind](text).input_ids
    assert prompt.text == text
    assert list(prompt.ids) == (stock[:-1] if kind in CLOSING else stock)
    assert [KINDS[kind].decode([prompt.ids[slot]]).strip() for slot in prompt.slots] == ["_"] * 3


def test_a_text_that_begins_with_the_opening_does_not_get_it_twice():
    prompt = InterpretationPrompt(sentence_piece(), ("<s>[INST]", 0, " [/INST]"))
    assert list(prompt.ids) == sentence_piece()("[INST] _ [/INST]").input_ids


def test_the_placeholder_of_the_published_code_has_its_space_after_it():
    prompt = InterpretationPrompt(sentence_piece(), ("[INST]", 0, 0, "[/INST] Sure"), placeholder="_ ")
    assert prompt.text == "[INST]_ _ [/INST] Sure"
    assert list(prompt.ids) == sentence_piece()(prompt.text).input_ids


def test_a_placeholder_that_merges_with_its_neighbour_is_an_error():
    message = "placeholder 'iz' merges with the text beside it to the token 'piz'; choose another, or put a space"
    with pytest.raises(InputError, match=f"^{message} between the two$"):
        InterpretationPrompt(byte_level(), ("p", 0, "za"), placeholder="iz")


def test_the_placeholder_can_be_chosen():
    prompt = InterpretationPrompt(byte_level(), ("a", 0), placeholder="x")
    assert byte_level().decode([prompt.ids[prompt.slots[0]]]) == "x"


def test_opening_tokens_can_be_left_out():
    assert InterpretationPrompt(sentence_piece(), (0,), add_special_tokens=False).slots == (0,)
    assert InterpretationPrompt(sentence_piece(), (0,)).slots == (1,)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_prompts_use_the_chat_template_and_begin_the_answer(name):
    prompt = interpretation_prompt(byte_level(chat=True), name, n_slots=3)
    shipped = SHIPPED[name]
    text = f"<|im_start|>user\n{shipped.message}<|im_end|>\n<|im_start|>assistant\n{shipped.answer}"
    assert prompt.text == text.replace("{slots}", " _ _ _")
    assert (prompt.name, len(prompt.slots)) == (name, 3 * text.count("{slots}"))


def test_shipped_prompts_without_a_chat_template():
    assert interpretation_prompt(byte_level(), "repeat", n_slots=2).text == "_ _\nSure, I will repeat for you:"


def test_shipped_prompts_in_the_users_chat_template():
    prompt = interpretation_prompt(sentence_piece(), "repeat", n_slots=2, chat_template="[INST] {prompt} [/INST]")
    assert prompt.text.split() == "[INST] _ _ [/INST] Sure, I will repeat for you:".split()
    assert prompt.ids[0] == sentence_piece().bos_token_id


def test_a_text_with_slots_gets_no_chat_template():
    words = "[INST]{slots} [/INST] Sure"
    prompt = interpretation_prompt(byte_level(chat=True), words)
    assert (prompt.text, prompt.name) == ("[INST] _ _ _ _ _ [/INST] Sure", words)


@pytest.mark.parametrize(
    ("words", "n_slots", "message"),
    [
        (
            "sumarize",
            5,
            "unknown interpretation prompt 'sumarize'; did you mean 'summarize'? "
            "Allowed: summarize, repeat, object, object_you_said, about, explain, a text with {slots} in it",
        ),
        ("summarize", 0, "the number of slots is 0; an interpretation prompt needs at least 1"),
    ],
)
def test_a_wrong_prompt_is_an_error(words, n_slots, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        interpretation_prompt(byte_level(chat=True), words, n_slots=n_slots)


def test_a_sequence_without_slots_is_an_error():
    message = "interpretation prompt 'mine' has no slot; give at least one slot for the inserted states"
    with pytest.raises(InputError, match=f"^{message}$"):
        InterpretationPrompt(byte_level(), ("text",), name="mine")


def test_a_placeholder_of_several_tokens_is_an_error():
    with pytest.raises(InputError, match="^placeholder 'qzx' is not a single token of this tokenizer; choose another$"):
        InterpretationPrompt(byte_level(), (0,), placeholder="qzx")
