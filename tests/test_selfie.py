"""Self-interpretation against the slow reference: one state at a time, every token by a full forward pass."""

import re
from dataclasses import replace

import pytest
import torch
from reference.overlay import reference_forward, reference_greedy
from reference.tiny import L, hooks_on, tiny_model
from reference.toy_tokenizers import byte_level, sentence_piece

from interpret.errors import InputError
from interpret.facts import Prompt
from interpret.interpretation_prompt import InterpretationPrompt
from interpret.selfie import Settings, count_rows, interpretations, plan_sources

PROMPTS = [
    Prompt("taste_1", "I love pizza", "taste"),
    Prompt("fact_1", "The Eiffel Tower is in", "fact", raw=True, subject="Eiffel Tower"),
]
SETTINGS = Settings(new_tokens=5, prompt_output_tokens=4, batch_size=3)


def speaking_model(kind: str = "llama"):
    """A tiny model with a row for every token of the toy tokenizers; seldom ends by itself."""
    model = tiny_model(kind)
    torch.manual_seed(0)
    model.resize_token_embeddings(420)
    model.generation_config.eos_token_id = 1
    return model


def templates(tokenizer):
    return [
        InterpretationPrompt(tokenizer, ("Say", 0, 0, "!"), name="say"),
        InterpretationPrompt(tokenizer, (0, "Sure, I will repeat for you:"), name="repeat"),
    ]


def rows_of(model, tokenizer, prompts=PROMPTS, settings=SETTINGS, made=None, **selectors):
    sources = plan_sources(model, tokenizer, prompts, **selectors)
    made = made or templates(tokenizer)
    rows = list(interpretations(model, tokenizer, sources, made, settings))
    assert len(rows) == count_rows(sources, len(made))
    return rows


def reference_reading(model, template, state, settings, layer):
    """Ids, P with and P without, by full passes alone."""
    info = (
        None
        if state is None
        else {
            layer: (list(template.slots), state.expand(1, len(template.slots), -1)),
            "overlay_strength": settings.strength,
            "replacing_mode": settings.mode,
        }
    )
    ids = reference_greedy(model, template.ids, info, settings.new_tokens)
    start = len(template.ids)
    readings = []
    with torch.no_grad():
        for plan in (info, None):
            logits = reference_forward(model, ids, plan, start).logits
            readings.append([logits[i - 1].softmax(-1)[ids[i]].item() for i in range(start, len(ids))])
    new = before_end(ids[start:])
    return new, readings[0][: len(new)], readings[1][: len(new)]


def before_end(ids):
    return ids[: ids.index(1)] if 1 in ids else ids


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, insertion_layer=2, mode="addition", strength=3.0)],
    ids=["normalized", "addition"],
)
def test_every_row_is_what_full_passes_give(kind, settings):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    rows = rows_of(model, tokenizer, settings=settings, layers="0,2,-1", tokens="0,-1")
    by_name = {template.name: template for template in templates(tokenizer)}
    texts = set()
    for row in rows:
        state = None
        if row.kind == "interpretation":
            ids = tokenizer(row.prompt, add_special_tokens=False).input_ids
            with torch.no_grad():
                states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            state = states[row.layer_idx][0, row.token_idx]
        template = by_name[row.repeat_prompt_name]
        ids, p_with, p_without = reference_reading(model, template, state, settings, settings.insertion_layer)
        assert row.interpretation == ids
        assert row.interpretation_text == tokenizer.decode(ids)
        assert row.interpretation_prob == pytest.approx(p_with, abs=1e-6)
        assert row.probability_without_insertion == pytest.approx(p_without, abs=1e-6)
        signed = [one - other for one, other in zip(p_with, p_without, strict=True)]
        assert row.signed_relevancy == pytest.approx(signed, abs=1e-6)
        assert row.interpretation_weights == [abs(value) for value in row.signed_relevancy]
        assert all(0 <= p <= 1 for p in row.interpretation_prob + row.probability_without_insertion)
        texts.add(row.interpretation_text)
    assert len(texts) > 2, "the states say too little for this test to tell them apart"
    assert hooks_on(model) == 0


def test_rows_say_where_they_come_from():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    rows = rows_of(model, tokenizer, layers="1,3", tokens="content")
    row = next(row for row in rows if row.kind == "interpretation")
    assert row.prompt == "<|im_start|>user\nI love pizza<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(row.prompt_token_list) == row.prompt
    for row in rows:
        if row.kind == "control":
            assert (row.layer_idx, row.token_idx, row.current_token) == (None, None, "")
        else:
            assert row.prompt_token_list[row.token_idx] == row.current_token
    assert {(row.name, row.category) for row in rows} == {("taste_1", "taste"), ("fact_1", "fact")}
    assert {row.repeat_prompt for row in rows} == {template.text for template in templates(tokenizer)}


def test_one_row_for_each_prompt_template_layer_and_token_and_a_control():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    rows = rows_of(model, tokenizer, prompts=PROMPTS[1:], layers="all", tokens="subject")
    tokens = sorted({row.token_idx for row in rows if row.token_idx is not None})
    places = [(None, None)] + [(layer, token) for layer in range(L + 1) for token in tokens]
    expected = [(name, *place) for name in ("say", "repeat") for place in places]
    assert [(row.repeat_prompt_name, row.layer_idx, row.token_idx) for row in rows] == expected
    assert "Eiffel Tower" in "".join(rows[0].prompt_token_list[token] for token in tokens)


def test_the_control_owes_nothing_to_an_insertion():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    controls = [row for row in rows_of(model, tokenizer, layers="1", tokens="0") if row.kind == "control"]
    assert len(controls) == len(PROMPTS) * 2
    for row in controls:
        assert set(row.signed_relevancy) == set(row.interpretation_weights) == {0.0}
        assert row.interpretation_prob == row.probability_without_insertion


def test_prompt_output_is_what_the_model_writes_after_the_prompt():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    for row in rows_of(model, tokenizer, layers="1", tokens="0"):
        ids = tokenizer(row.prompt, add_special_tokens=False).input_ids
        expected = reference_greedy(model, ids, None, SETTINGS.prompt_output_tokens)[len(ids) :]
        assert row.prompt_output == tokenizer.decode(before_end(expected))
    silent = rows_of(model, tokenizer, settings=replace(SETTINGS, prompt_output_tokens=0), layers="1", tokens="0")
    assert {row.prompt_output for row in silent} == {""}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batch_size_changes_no_row(kind):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    one, five = (
        rows_of(model, tokenizer, settings=replace(SETTINGS, batch_size=size), layers="all", tokens="::2")
        for size in (1, 5)
    )
    numbers = (
        "interpretation_prob",
        "probability_without_insertion",
        "signed_relevancy",
        "interpretation_weights",
    )
    for a, b in zip(one, five, strict=True):
        for name in numbers:
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-5)
        assert replace(a, **dict.fromkeys(numbers)) == replace(b, **dict.fromkeys(numbers))


def test_nothing_is_scored_from_the_end_token_on():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    endless = rows_of(model, tokenizer, layers="all", tokens="all")
    # Take for the end a token that some rows write in their middle.
    end = next(row.interpretation[2] for row in endless if len(row.interpretation) == 5)
    model.generation_config.eos_token_id = [end, 1]
    ended = rows_of(model, tokenizer, layers="all", tokens="all")
    assert any(len(row.interpretation) == 2 for row in ended)
    for before, after in zip(endless, ended, strict=True):
        ids = before.interpretation
        cut = ids.index(end) if end in ids else len(ids)
        assert after.interpretation == ids[:cut]
        for scores in (after.interpretation_prob, after.probability_without_insertion, after.signed_relevancy):
            assert len(scores) == cut
        assert after.interpretation_prob == pytest.approx(before.interpretation_prob[:cut], abs=1e-6)


def test_a_checkpoints_own_sampling_settings_are_left_out():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    plain = rows_of(model, tokenizer, layers="1", tokens="0")
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert rows_of(model, tokenizer, layers="1", tokens="0") == plain


@pytest.mark.parametrize(
    ("prompt", "template", "expected"),
    [
        (Prompt("c_1", "Hi", "c", raw=True), "model", "Hi"),
        (Prompt("c_1", "Hi", "c"), "model", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (Prompt("c_1", "Hi", "c"), "[INST] {prompt} [/INST]", "[INST] Hi [/INST]"),
        (Prompt("c_1", "Hi", "c", raw=True), "[INST] {prompt} [/INST]", "Hi"),
    ],
)
def test_raw_prompts_stay_as_they_are_and_others_are_wrapped(prompt, template, expected):
    (source,) = plan_sources(speaking_model(), byte_level(chat=True), [prompt], chat_template=template)
    assert source.tokenised.text == expected


def test_sentence_piece_models_are_interpreted_too():
    model, tokenizer = speaking_model(), sentence_piece()
    rows = rows_of(model, tokenizer, prompts=PROMPTS[1:], layers="1", tokens="subject_last")
    assert rows[0].prompt_token_list[0] == "<s>"
    assert rows[1].current_token.strip()


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ({"layers": "5"}, "layer 5 does not exist; there are layers 0 to 4, or -5 to -1"),
        (
            {"tokens": "subject"},
            "prompt taste_1: token selector 'subject' needs a \"subject\", which this prompt does",
        ),
        ({"tokens": "99"}, "prompt taste_1: token 99 does not exist; there are tokens 0 to "),
        ({"tokens": "contents"}, "prompt taste_1: unknown token selector 'contents'; did you mean 'content'?"),
    ],
)
def test_a_selector_that_does_not_fit_names_the_prompt(selectors, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        plan_sources(speaking_model(), byte_level(chat=True), PROMPTS, **selectors)


def test_what_is_longer_than_the_models_context_is_refused_by_name():
    model, tokenizer = speaking_model("gpt2"), byte_level(chat=True)
    message = "prompt long_1 has 100 tokens; with 4 new ones it exceeds the model's 64"
    with pytest.raises(InputError, match=f"^{message}$"):
        rows_of(model, tokenizer, [Prompt("long_1", "!" * 100, "long", raw=True)], layers="0", tokens="0")
    message = re.escape("interpretation prompt 'say' has 4 tokens; with 61 new ones it exceeds the model's 64")
    with pytest.raises(InputError, match=f"^{message}$"):
        rows_of(
            model,
            tokenizer,
            settings=replace(SETTINGS, new_tokens=61),
            made=[InterpretationPrompt(tokenizer, ("A", 0, 0, "!"), name="say")],
            layers="0",
            tokens="0",
        )


def test_gradients_are_not_recorded():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    rows_of(model, tokenizer, layers="1", tokens="0")
    assert all(parameter.grad is None for parameter in model.parameters())
