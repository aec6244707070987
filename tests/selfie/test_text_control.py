"""The control with the prompt's own text in place of the state, against passes of the stock model on that text."""

import json
from dataclasses import replace
from math import log

import pytest
import torch

from interpret import selfie
from interpret.errors import InputError, RunError
from interpret.prompts.prompts import Prompt
from interpret.selfie.sources import plan_sources, with_generated
from interpret.selfie.templates import InterpretationPrompt, interpretation_prompt
from interpret.slots.decoding import COLUMNS_APART
from reference.kinds import FURTHER, FURTHER_WHOLE, KINDS
from reference.self_interpretation import LONGROPE, PROMPTS, SCORED, rows_of, speaking_model
from reference.toy_tokenizers import byte_level, sentence_piece

TEMPLATES = {
    "say": (("Say", 0, 0, "!"), "Say {words}!"),
    "explain": (("What is", 0, 0, "?\n", 0, " is"), "What is {words}?\n{words} is"),
}
"""Name -> the sequence of an interpretation prompt, and the same with words in place of its slots."""


def templates_of(tokenizer):
    return [InterpretationPrompt(tokenizer, sequence, name=name) for name, (sequence, _) in TEMPLATES.items()]


def words_until(tokenizer, message, row):
    """Return the user's message up to and including the token of a row, by the offsets that the tokenizer reports."""
    encoded = tokenizer(row.prompt, add_special_tokens=False, return_offsets_mapping=True)
    start = row.prompt.index(message)
    return row.prompt[start : max(start, min(encoded.offset_mapping[row.token_idx][1], start + len(message)))]


def plain_pass(model, prompt, text):
    """Return the probability of each token of a text after a prompt, from one pass of the stock model."""
    with torch.no_grad():
        p = model(torch.tensor([[*prompt, *text]])).logits[0].float().softmax(-1)
    return [p[len(prompt) - 1 + place, token].item() for place, token in enumerate(text)]


@pytest.mark.parametrize("kind", [*KINDS, "mistral_short_sighted", *FURTHER, *FURTHER_WHOLE])
def test_each_text_is_scored_after_the_words_that_its_state_has_read(kind):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    # Large logits: in float32, probabilities are exact to about 1e-6.
    large = ("gemma", "vaultgemma", "nemotron", "hyperclovax", "recurrent_gemma", "zamba2", "qwen3_next")
    near = 5e-6 if kind.startswith(large) else 1e-6
    settings = replace(SCORED, new_tokens=3, prompt_output_tokens=0, batch_size=5)
    rows = rows_of(model, tokenizer, settings=settings, made=templates_of(tokenizer), layers="1,2", tokens="::3")
    messages = {prompt.name: prompt.text for prompt in PROMPTS}
    compared = 0
    for row in rows:
        words = "" if row.kind == "control" else words_until(tokenizer, messages[row.name], row).strip()
        if not words:
            assert (row.probability_with_text, row.gain_over_text) == ([], None)
            continue
        prompt = tokenizer(TEMPLATES[row.repeat_prompt_name][1].format(words=words)).input_ids
        expected = plain_pass(model, prompt, row.interpretation)
        assert row.probability_with_text == pytest.approx(expected, abs=near)
        if row.interpretation:
            gains = [log(p) - log(q) for p, q in zip(row.interpretation_prob, expected, strict=True)]
            assert row.gain_over_text == pytest.approx(sum(gains) / len(gains), abs=1e-3)
        compared += bool(row.interpretation)
    assert compared > 10, "too few rows for this test"


def test_a_row_says_more_than_the_controls_if_all_gains_are_above_0_and_it_says_something():
    tokenizer, verdicts = byte_level(chat=True), set()
    settings, made = replace(SCORED, new_tokens=1, prompt_output_tokens=0, batch_size=None), templates_of(tokenizer)[:1]
    for row in rows_of(speaking_model(), tokenizer, settings=settings, made=made, layers="all", tokens="all"):
        gains = [row.gain_over_nothing, row.gain_over_wrong_vector, row.gain_over_text]
        gains = [gain for gain in gains if gain is not None]
        if gains:
            assert row.says_more_than_controls == (min(gains) > 0 and not row.says_nothing)
            verdicts.add((min(gains) > 0, row.says_nothing))
        else:
            assert row.says_more_than_controls is None
    assert (True, True) in verdicts, "no text that says nothing passes the controls: too few rows for this test"
    assert (True, False) in verdicts


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_state_that_is_only_the_embedding_of_its_token_gains_nothing(kind):
    """Inserted into the one slot at layer 0, it is what the model reads of the text itself."""
    model, tokenizer = speaking_model(kind), byte_level()
    template = InterpretationPrompt(tokenizer, ("I love", 0, "!"), name="love")
    prompt = Prompt("one_1", " Tower", raw=True)
    settings = replace(SCORED, insertion_layer=0, prompt_output_tokens=0)
    for row in rows_of(model, tokenizer, [prompt], settings, [template], layers="0", tokens="last"):
        if row.kind == "control":
            continue
        text = template.with_text(tokenizer, " Tower")
        (slot,) = template.slots
        token = tokenizer(row.prompt, add_special_tokens=False).input_ids[-1]
        assert text == (*template.ids[:slot], token, *template.ids[slot + 1 :]), "the text is not one token"
        assert row.probability_with_text == pytest.approx(row.interpretation_prob, abs=1e-6)
        assert row.gain_over_text == pytest.approx(0, abs=1e-5)


def test_long_prompts_are_scored_alike_wherever_their_runs_are_cut():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    template = templates_of(tokenizer)[0]
    prompt = Prompt("long_1", "The Eiffel Tower is in the city of Paris. " * 3, raw=True)
    settings = replace(SCORED, new_tokens=3, prompt_output_tokens=0, wrong_vector=False, batch_size=20)
    rows = rows_of(model, tokenizer, [prompt], settings, [template], layers="1", tokens="::9,-1")[1:]
    assert rows[-1].token_idx >= COLUMNS_APART
    for row in rows:
        words = words_until(tokenizer, prompt.text, row).strip()
        ids = tokenizer(TEMPLATES["say"][1].format(words=words)).input_ids
        assert row.probability_with_text == pytest.approx(plain_pass(model, ids, row.interpretation), abs=1e-6)


def source_of(tokenizer, prompt, tokens="all"):
    (source,) = plan_sources(speaking_model(), tokenizer, [prompt], layers="0", tokens=tokens)
    return source


def test_chat_markup_is_no_part_of_the_text():
    source = source_of(byte_level(chat=True), PROMPTS[0])
    texts = [source.text_until(token) for token in range(len(source.tokenised.ids))]
    message = source.tokenised.content
    assert set(texts[: message[0]]) == {None}
    assert texts[message[0]] == source.tokenised.pieces[message[0]]
    assert set(texts[message[-1] :]) == {"I love pizza"}


def test_an_opening_token_has_no_text():
    source = source_of(sentence_piece(), PROMPTS[1])
    assert source.text_until(0) is None
    assert source.text_until(1) == "The"[: len(source.text_until(1))]
    assert source.text_until(len(source.tokenised.ids) - 1) == PROMPTS[1].text


@pytest.mark.parametrize("made", [byte_level, sentence_piece])
def test_a_character_of_several_tokens_belongs_to_the_first_of_them(made):
    source = source_of(made(), Prompt("c_1", "a €!", raw=True))
    texts = [source.text_until(token) for token in source.tokenised.content]
    assert set(texts) <= {"a", "a ", "a €", "a €!"}
    assert texts.count("a €") >= 3
    assert texts[-1] == "a €!"


@pytest.mark.parametrize(("token", "text"), [(" Tower", "I love pizza Tower"), ("<|im_end|>", "I love pizza")])
def test_the_generated_token_follows_the_message(token, text):
    tokenizer = byte_level(chat=True)
    (token_id,) = tokenizer(token, add_special_tokens=False).input_ids[:1]
    source = source_of(tokenizer, PROMPTS[0], "generated")
    found = with_generated(tokenizer, source, Generated(token_id))
    piece = tokenizer.decode([token_id]) if token != "<|im_end|>" else ""
    assert found.text_until(len(source.tokenised.ids)) == text.replace(" Tower", piece)


class Generated:
    """A continuation whose first token is known."""

    def __init__(self, first):
        self.first = first


@pytest.mark.parametrize(
    ("words", "text", "expected"),
    [
        ("What is{slots}?", "the sea", "What is the sea?"),
        ("What is{slots}?", " the sea", "What is the sea?"),
        ("[INST]{slots} [/INST] Sure", "the sea", "[INST] the sea [/INST] Sure"),
        ("user\n{slots}\n{slots} is", "the sea", "user\nthe sea\nthe sea is"),
        ("{slots} is", "東京", "東京 is"),
        ("word {slots} is", "東京", "word 東京 is"),
    ],
)
@pytest.mark.parametrize("made", [byte_level, sentence_piece])
def test_a_row_of_slots_is_replaced_by_the_text_once(made, words, text, expected):
    tokenizer = made()
    prompt = interpretation_prompt(tokenizer, words, n_slots=4)
    assert list(prompt.with_text(tokenizer, text)) == tokenizer(expected).input_ids


def test_the_space_after_a_placeholder_separates_the_text_too():
    tokenizer = sentence_piece()
    prompt = InterpretationPrompt(tokenizer, ("[INST] ", 0, 0, "[/INST] Sure"), placeholder="_ ")
    assert list(prompt.with_text(tokenizer, "the sea")) == tokenizer("[INST] the sea [/INST] Sure").input_ids


def test_a_chat_template_keeps_its_special_tokens():
    tokenizer = byte_level(chat=True)
    ids = interpretation_prompt(tokenizer, "about").with_text(tokenizer, "the sea")
    expected = "<|im_start|>user\nthe sea<|im_end|>\n<|im_start|>assistant\nThe message is about"
    assert list(ids) == tokenizer(expected, add_special_tokens=False).input_ids


def test_a_text_that_exceeds_the_context_is_refused_and_the_control_can_be_left_out():
    model, tokenizer = speaking_model("gpt2"), byte_level(chat=True)
    prompt = [Prompt("long_1", "!" * 58, raw=True)]
    settings, made = replace(SCORED, prompt_output_tokens=0), templates_of(tokenizer)[:1]
    message = (
        r"^interpretation prompt 'say' with the text of prompt long_1 has \d+ tokens; with 5 new tokens it exceeds "
        r"the 64 that this model reads; shorten the prompt, or leave out this control: text_control=False, or "
        r"--no-text-control$"
    )
    with pytest.raises(InputError, match=message):
        rows_of(model, tokenizer, prompt, settings, made, layers="1", tokens="0,-1")
    rows = rows_of(model, tokenizer, prompt, replace(settings, text_control=False), made, layers="1", tokens="0,-1")
    assert [row.gain_over_text for row in rows] == [None] * 3
    short = rows_of(model, tokenizer, prompt, settings, made, layers="1", tokens="0,1")
    assert None not in [row.gain_over_text for row in short[1:]]


@pytest.mark.parametrize("kind", LONGROPE)
def test_a_text_that_reaches_other_rotary_embeddings_is_refused(kind):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    made = [InterpretationPrompt(tokenizer, ("A", 0, 0, "!"), name="say")]
    message = r"^interpretation prompt 'say' with the text of prompt p_1 has \d+ tokens; .* exceeds 16, beyond which"
    with pytest.raises(InputError, match=message):
        rows_of(model, tokenizer, [Prompt("p_1", "!" * 20, raw=True)], SCORED, made, layers="0", tokens="-1")


def test_a_run_of_a_version_without_this_control_is_not_resumed(opened, tmp_path):
    options = {"layers": "1", "tokens": "0", "new_tokens": 2, "progress": False}
    selfie.run(*opened, [Prompt("p_1", "I love pizza", raw=True)], tmp_path / "run", **options)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    del manifest["identity"]["text_control"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"contains another run:\n  text_control: not set in the folder, true now\n"):
        selfie.run(*opened, [Prompt("p_1", "I love pizza", raw=True)], tmp_path / "run", **options)
