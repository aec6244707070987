"""Self-interpretation compared with the slow reference: one state at a time, a full forward pass per token."""

import math
import re
from dataclasses import replace

import pytest
import torch

from interpret.errors import InputError
from interpret.prompts.prompts import Prompt
from interpret.selfie.readings import log_gain
from interpret.selfie.templates import InterpretationPrompt
from reference.kinds import FURTHER, FURTHER_WHOLE, KINDS, L
from reference.overlay import reference_greedy
from reference.self_interpretation import (
    LONGROPE,
    PROMPTS,
    SETTINGS,
    before_end,
    reference_reading,
    rows_of,
    speaking_model,
    templates,
)
from reference.tiny import hooks_on
from reference.toy_tokenizers import byte_level, sentence_piece


@pytest.mark.matrix
@pytest.mark.parametrize("kind", [*KINDS, "mistral_short_sighted", *LONGROPE, *FURTHER, *FURTHER_WHOLE])
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, insertion_layer=2, mode="addition", strength=3.0)],
    ids=["normalized", "addition"],
)
def test_every_row_equals_full_forward_passes(kind, settings):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    # In this OPT, the output of the last layer is narrower than the inputs of its layers.
    layers = "0,2,3" if kind == "opt_post_norm" else "0,2,-1"
    rows = rows_of(model, tokenizer, settings=settings, layers=layers, tokens="0,-1")
    by_name = {template.name: template for template in templates(tokenizer)}
    # Large logits: in float32, the probabilities of these are exact to about 1e-6, those of the others to 3e-7.
    large = ("gemma", "vaultgemma", "nemotron", "hyperclovax", "recurrent_gemma", "zamba2", "qwen3_next")
    near = 5e-6 if kind.startswith(large) else 1e-6
    texts = set()
    for row in rows:
        state = None
        if row.kind == "interpretation":
            ids = tokenizer(row.prompt, add_special_tokens=False).input_ids
            with torch.no_grad():
                states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
                if kind.endswith(("mamba", "mamba2")) and row.layer_idx < L:  # these collect the outputs of layers
                    states = [model.get_input_embeddings()(torch.tensor([ids])), *states]
                if kind == "biogpt" and row.site == "final_norm":  # 4.34.0 collects the state before this norm
                    states = [*states[:-1], model.base_model(torch.tensor([ids]))[0]]
            state = states[row.layer_idx][0, row.token_idx]
        template = by_name[row.repeat_prompt_name]
        ids, p_with, p_without = reference_reading(model, template, state, settings, settings.insertion_layer)
        assert row.interpretation == ids
        assert row.interpretation_text == tokenizer.decode(ids)
        assert row.interpretation_prob == pytest.approx(p_with, abs=near)
        assert row.probability_without_insertion == pytest.approx(p_without, abs=near)
        signed = [one - other for one, other in zip(p_with, p_without, strict=True)]
        assert row.signed_relevancy == pytest.approx(signed, abs=2 * near)  # of two probabilities
        assert row.interpretation_weights == [abs(value) for value in row.signed_relevancy]
        assert all(0 <= p <= 1 for p in row.interpretation_prob + row.probability_without_insertion)
        texts.add(row.interpretation_text)
    assert len(texts) > (1 if kind == "gpt_bigcode" else 2), "the texts are too alike for this test"
    assert hooks_on(model) == 0


def test_rows_name_their_prompt_layer_and_token():
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


def test_the_control_has_no_relevancy():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    controls = [row for row in rows_of(model, tokenizer, layers="1", tokens="0") if row.kind == "control"]
    assert len(controls) == len(PROMPTS) * 2
    for row in controls:
        assert set(row.signed_relevancy) == set(row.interpretation_weights) == {0.0}
        assert row.interpretation_prob == row.probability_without_insertion


def test_each_text_is_compared_with_the_controls():
    overlaps = set()
    for row in rows_of(speaking_model(), byte_level(chat=True), layers="all", tokens="all"):
        if row.kind == "control":
            control = row.interpretation
            assert row.overlap_with_control is None
            continue
        left, common = list(control), 0
        for token in row.interpretation:
            if token in left:
                left.remove(token)
                common += 1
        assert row.overlap_with_control == (common / len(row.interpretation) if row.interpretation else None)
        overlaps.add(row.overlap_with_control)
    assert len(overlaps) > 2, "the texts are too alike for this test"


def test_prompt_output_is_what_the_model_writes_after_the_prompt():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    for row in rows_of(model, tokenizer, layers="1", tokens="0"):
        ids = tokenizer(row.prompt, add_special_tokens=False).input_ids
        expected = reference_greedy(model, ids, None, SETTINGS.prompt_output_tokens)[len(ids) :]
        assert row.prompt_output == tokenizer.decode(before_end(expected))
    silent = rows_of(model, tokenizer, settings=replace(SETTINGS, prompt_output_tokens=0), layers="1", tokens="0")
    assert {row.prompt_output for row in silent} == {""}


def test_tokens_from_the_end_token_on_are_not_scored():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    endless = rows_of(model, tokenizer, prompts=PROMPTS[:1], layers="all", tokens="0,1,2")
    # Use as the end token one that some rows generate before their end.
    end = next(row.interpretation[2] for row in endless if len(row.interpretation) == 5)
    model.generation_config.eos_token_id = [end, 1]
    ended = rows_of(model, tokenizer, prompts=PROMPTS[:1], layers="all", tokens="0,1,2")
    assert any(len(row.interpretation) == 2 for row in ended)
    for before, after in zip(endless, ended, strict=True):
        ids = before.interpretation
        cut = ids.index(end) if end in ids else len(ids)
        assert after.interpretation == ids[:cut]
        for scores in (after.interpretation_prob, after.probability_without_insertion, after.signed_relevancy):
            assert len(scores) == cut
        assert after.interpretation_prob == pytest.approx(before.interpretation_prob[:cut], abs=1e-6)


def test_sampling_settings_of_a_checkpoint_are_ignored():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    plain = rows_of(model, tokenizer, layers="1", tokens="0")
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert rows_of(model, tokenizer, layers="1", tokens="0") == plain


def test_sentence_piece_models_are_interpreted_too():
    model, tokenizer = speaking_model(), sentence_piece()
    rows = rows_of(model, tokenizer, prompts=PROMPTS[1:], layers="1", tokens="subject_last")
    assert rows[0].prompt_token_list[0] == "<s>"
    assert rows[1].current_token.strip()


def test_a_prompt_longer_than_the_context_is_refused_by_name():
    model, tokenizer = speaking_model("gpt2"), byte_level(chat=True)
    message = "prompt long_1 has 100 tokens; this model reads at most 64"
    with pytest.raises(InputError, match=f"^{message}$"):
        rows_of(model, tokenizer, [Prompt("long_1", "!" * 100, "long", raw=True)], layers="0", tokens="0")
    message = "interpretation prompt 'say' has 4 tokens; with 61 new tokens it exceeds the 64 that this model reads"
    with pytest.raises(InputError, match=f"^{message}$"):
        rows_of(
            model,
            tokenizer,
            settings=replace(SETTINGS, new_tokens=61),
            made=[InterpretationPrompt(tokenizer, ("A", 0, 0, "!"), name="say")],
            layers="0",
            tokens="0",
        )


@pytest.mark.parametrize("kind", LONGROPE)
def test_a_text_that_would_grow_into_other_rotary_embeddings_is_refused_by_name(kind):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    message = r"^interpretation prompt 'say' has 4 tokens; with 13 new tokens it grows beyond 16, .* at most 12 new"
    made = [InterpretationPrompt(tokenizer, ("A", 0, 0, "!"), name="say")]
    with pytest.raises(InputError, match=message):
        rows_of(model, tokenizer, settings=replace(SETTINGS, new_tokens=13), made=made, layers="0", tokens="0")


def test_a_model_in_training_mode_is_refused():
    message = "the model is in training mode, in which dropout makes every run different; call model.eval()"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        rows_of(speaking_model().train(), byte_level(chat=True), layers="1", tokens="0")


def test_gradients_are_not_recorded():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    rows_of(model, tokenizer, layers="1", tokens="0")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gains_of_probabilities_that_vanish_have_a_floor():
    tiny = torch.finfo(torch.float32).tiny
    assert log_gain([1e-30], [1e-34]) == pytest.approx(math.log(1e4))
    assert log_gain([0.5], [0.0]) == pytest.approx(math.log(0.5 / tiny))
    assert log_gain([0.0, 0.5], [0.25, 0.5]) == pytest.approx(math.log(tiny / 0.25) / 2)
    assert log_gain([0.0], [0.0]) == 0
    assert log_gain([1e-42], [0.0]) == 0
