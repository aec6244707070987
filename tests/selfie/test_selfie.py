"""Self-interpretation compared with the slow reference: one state at a time, a full forward pass per token."""

import math
import re
from dataclasses import replace

import pytest
import torch
import transformers

from interpret.errors import InputError, ModelError
from interpret.prompts.prompts import Prompt
from interpret.selfie import readings
from interpret.selfie.readings import Settings, log_gain
from interpret.selfie.rows import count_rows, interpretations
from interpret.selfie.sources import plan_sources
from interpret.selfie.templates import InterpretationPrompt
from reference.memory import only_new_objects, tensor_bytes
from reference.overlay import decoder_layers, reference_forward, reference_greedy
from reference.tiny import FURTHER, KINDS, L, hooks_on, longrope_model, resize_vocabulary, tiny_model
from reference.toy_tokenizers import byte_level, sentence_piece

PROMPTS = [
    Prompt("taste_1", "I love pizza", "taste"),
    Prompt("fact_1", "The Eiffel Tower is in", "fact", raw=True, subject="Eiffel Tower"),
]
SETTINGS = Settings(new_tokens=5, prompt_output_tokens=4, batch_size=3, wrong_vector=False)
LONGROPE = ["longrope"] if hasattr(transformers, "Phi3Config") else []
SCORED = replace(SETTINGS, wrong_vector=True)


def speaking_model(kind: str = "llama"):
    """A tiny model with an embedding for every token of the toy tokenizers; it rarely generates the end token."""
    if kind == "longrope":
        return longrope_model(vocabulary=420)
    model = tiny_model(kind.removesuffix("_short_sighted"))
    if kind.endswith("_short_sighted"):
        model.config.sliding_window = 6
    torch.manual_seed(0)
    resize_vocabulary(model, 420)
    model.generation_config.eos_token_id = 1
    return model


def templates(tokenizer):
    return [
        InterpretationPrompt(tokenizer, ("Say", 0, 0, "!"), name="say"),
        InterpretationPrompt(tokenizer, ("hello", 0, 0, " repeat:"), name="repeat"),
    ]


def rows_of(model, tokenizer, prompts=PROMPTS, settings=SETTINGS, made=None, **selectors):
    sources = plan_sources(model, tokenizer, prompts, **selectors)
    made = made or templates(tokenizer)
    rows = list(interpretations(model, tokenizer, sources, made, settings))
    assert len(rows) == count_rows(sources, len(made))
    return rows


def reference_reading(model, template, state, settings, layer):
    """Return ids, P_with and P_without, computed only by full forward passes."""
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


@pytest.mark.parametrize("kind", [*KINDS, "mistral_short_sighted", *LONGROPE, *FURTHER])
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
    near = 5e-6 if kind.startswith(("gemma", "vaultgemma", "nemotron", "hyperclovax")) else 1e-6
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
        assert row.interpretation_prob == pytest.approx(p_with, abs=near)
        assert row.probability_without_insertion == pytest.approx(p_without, abs=near)
        signed = [one - other for one, other in zip(p_with, p_without, strict=True)]
        assert row.signed_relevancy == pytest.approx(signed, abs=near)
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


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("size", [5, None])
def test_batch_size_changes_no_row(kind, size):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    one, five = (
        rows_of(model, tokenizer, settings=replace(SCORED, batch_size=size), layers="1:4:2", tokens="::2")
        for size in (1, size)
    )
    numbers = (
        "interpretation_prob",
        "probability_without_insertion",
        "probability_with_wrong_vector",
        "signed_relevancy",
        "interpretation_weights",
        "gain_over_nothing",
        "gain_over_wrong_vector",
    )
    for a, b in zip(one, five, strict=True):
        for name in numbers:
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-5)
        assert replace(a, **dict.fromkeys(numbers)) == replace(b, **dict.fromkeys(numbers))


def test_tokens_from_the_end_token_on_are_not_scored():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    endless = rows_of(model, tokenizer, layers="all", tokens="all")
    # Use as the end token one that some rows generate before their end.
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


def test_sampling_settings_of_a_checkpoint_are_ignored():
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
def test_raw_prompts_are_unchanged_and_others_get_the_chat_template(prompt, template, expected):
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


def test_selectors_may_be_lists():
    options = {"model": speaking_model(), "tokenizer": byte_level(chat=True)}
    prompts = [Prompt("mine", "extra cheese pizza", raw=True)]
    (listed,) = plan_sources(**options, prompts=prompts, layers=[1, -1], tokens=[0, -1])
    (worded,) = plan_sources(**options, prompts=prompts, layers="1,-1", tokens="0,-1")
    assert listed == worded
    assert [layer for layer, _ in listed.pairs] == [1, 1, 4, 4]
    message = (
        "prompts[0] is the string 'cheese'; expected a Prompt(name, text), "
        "with raw=True to read it without a chat template"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        plan_sources(**options, prompts=["cheese"])


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


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_wrong_states_are_other_tokens_of_the_same_prompt_and_layer_and_score_the_same_text(kind):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    rows = rows_of(model, tokenizer, settings=SCORED, layers="1,3", tokens="content")
    by_name = {template.name: template for template in templates(tokenizer)}
    for row in rows:
        if row.kind == "control":
            assert (row.wrong_token_idx, row.probability_with_wrong_vector) == (None, [])
            assert (row.gain_over_nothing, row.says_more_than_controls) == (None, None)
            continue
        assert row.wrong_token_idx not in (None, row.token_idx)
        template = by_name[row.repeat_prompt_name]
        ids = tokenizer(row.prompt, add_special_tokens=False).input_ids
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            wrong = states[row.layer_idx][0, row.wrong_token_idx]
            info = {1: (list(template.slots), wrong.expand(1, len(template.slots), -1))}
            text = [*template.ids, *row.interpretation]
            logits = reference_forward(model, text, info, len(template.ids)).logits
        expected = [logits[i - 1].softmax(-1)[text[i]].item() for i in range(len(template.ids), len(text))]
        assert row.probability_with_wrong_vector == pytest.approx(expected, abs=1e-6)
        if not row.interpretation:
            assert (row.gain_over_nothing, row.gain_over_wrong_vector, row.says_more_than_controls) == (None,) * 3
            continue
        gain = torch.tensor(row.interpretation_prob).log() - torch.tensor(expected).log()
        assert row.gain_over_wrong_vector == pytest.approx(gain.mean().item(), abs=1e-4)
        gain = torch.tensor(row.interpretation_prob).log() - torch.tensor(row.probability_without_insertion).log()
        assert row.gain_over_nothing == pytest.approx(gain.mean().item(), abs=1e-4)
        assert row.says_more_than_controls == (min(row.gain_over_nothing, row.gain_over_wrong_vector) > 0)


def test_wrong_states_depend_only_on_the_seed():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    chosen = [
        [row.wrong_token_idx for row in rows_of(model, tokenizer, settings=replace(SCORED, seed=seed), layers="1")]
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert chosen[0] == chosen[1]
    assert any(other != chosen[0] for other in chosen)


def test_a_single_requested_token_is_compared_with_another_token():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    rows = rows_of(model, tokenizer, PROMPTS[1:], SCORED, layers="1", tokens="last")
    assert rows[1].wrong_token_idx in range(rows[1].token_idx)


def test_a_prompt_of_one_token_has_no_wrong_state():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    rows = rows_of(model, tokenizer, [Prompt("c_1", "a", "c", raw=True)], SCORED, layers="1", tokens="all")
    assert (rows[1].wrong_token_idx, rows[1].gain_over_wrong_vector) == (None, None)
    assert rows[1].says_more_than_controls == (rows[1].gain_over_nothing > 0)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_states_may_come_from_attention_and_mlp(kind, site):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    rows = rows_of(model, tokenizer, PROMPTS[1:], layers="0,-1", tokens="last", site=site)
    assert [row.layer_idx for row in rows] == [None, 0, L - 1] * 2
    assert {row.site for row in rows} == {site}
    template = templates(tokenizer)[0]
    ids = tokenizer(rows[0].prompt, add_special_tokens=False).input_ids
    seen = {}
    layer = decoder_layers(model)[L - 1]
    names = {"llama": ("self_attn", "mlp"), "gpt2": ("attn", "mlp"), "opt": ("self_attn", "fc2")}[kind]
    module = layer.get_submodule(names[site == "mlp_out"])
    handle = module.register_forward_hook(
        lambda module, args, out: seen.update(out=out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(torch.tensor([ids]))
    handle.remove()
    state = seen["out"].reshape(1, len(ids), -1)[0, -1]
    expected, p_with, _ = reference_reading(model, template, state, SETTINGS, 1)
    assert rows[2].interpretation == expected
    assert rows[2].interpretation_prob == pytest.approx(p_with, abs=1e-6)


def test_same_inserts_each_state_at_its_own_layer():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    # One batch of two prompts: the layers are ascending within each prompt, not over the batch.
    settings = replace(SETTINGS, insertion_layer="same", batch_size=12)
    template = templates(tokenizer)[0]
    rows = rows_of(model, tokenizer, settings=settings, made=[template], layers="0,2,3", tokens="1,2")
    read = [row for row in rows if row.kind == "interpretation"]
    assert [row.layer_idx for row in read] == [0, 0, 2, 2, 3, 3] * 2
    for row in read:
        assert row.insertion_layer == row.layer_idx
        ids = tokenizer(row.prompt, add_special_tokens=False).input_ids
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        state = states[row.layer_idx][0, row.token_idx]
        expected, p_with, _ = reference_reading(model, template, state, settings, row.layer_idx)
        assert row.interpretation == expected
        assert row.interpretation_prob == pytest.approx(p_with, abs=1e-6)


def test_same_refuses_the_state_after_the_final_norm():
    message = (
        "prompt taste_1: state 4 (after the final norm) is not the input of a layer; with insertion layer 'same', "
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}choose layers 0 to 3$"):
        rows_of(
            speaking_model(), byte_level(chat=True), settings=replace(SETTINGS, insertion_layer="same"), layers="all"
        )


def test_a_last_state_of_another_width_than_the_layers_is_refused():
    message = (
        "prompt taste_1: state 4 (after the final norm) has width 16, but layers have width 32; choose layers 0 to 3"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        rows_of(speaking_model("opt_post_norm"), byte_level(chat=True), layers="-1", tokens="0")


def test_groups_of_prompts_do_not_depend_on_which_are_done():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    prompts = [Prompt(f"c_{n}", f"I love pizza {n}", "c", raw=True) for n in range(5)]
    sources = plan_sources(model, tokenizer, prompts, layers="1", tokens="0,1")
    made, settings = templates(tokenizer), replace(SCORED, batch_size=4)
    whole = list(interpretations(model, tokenizer, sources, made, settings))
    for done in range(6):
        skip = [prompt.name for prompt in prompts[:done]]
        rest = list(interpretations(model, tokenizer, sources, made, settings, skip=skip))
        assert rest == [row for row in whole if row.name not in skip]


def test_a_state_that_is_not_finite_costs_only_its_own_row():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    sound = rows_of(model, tokenizer, PROMPTS[1:], layers="0", tokens="0,1")
    broken = tokenizer(PROMPTS[1].text, add_special_tokens=False).input_ids[1]
    assert broken not in [token for template in templates(tokenizer) for token in template.ids]
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = float("nan")
    rows = rows_of(model, tokenizer, PROMPTS[1:], replace(SETTINGS, prompt_output_tokens=0), layers="0", tokens="0,1")
    assert [row.kind for row in rows] == ["control", "interpretation", "failed"] * 2
    assert rows[2].interpretation == rows[2].interpretation_prob == []
    assert rows[1].interpretation == sound[1].interpretation


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_with_a_message(monkeypatch, error):
    model, tokenizer = speaking_model(), byte_level(chat=True)
    calm = rows_of(model, tokenizer, layers="all", tokens="0,1", settings=replace(SETTINGS, batch_size=100))
    sizes, real = [], readings.start_inserted

    def cramped(primed, insertions):
        sizes.append(len(insertions))
        if len(insertions) > 6:
            raise error
        return real(primed, insertions)

    monkeypatch.setattr(readings, "start_inserted", cramped)
    said = []
    sources = plan_sources(model, tokenizer, PROMPTS, layers="all", tokens="0,1")
    settings = replace(SETTINGS, batch_size=100)
    rows = list(interpretations(model, tokenizer, sources, templates(tokenizer), settings, say=said.append))
    assert [row.interpretation for row in rows] == [row.interpretation for row in calm]
    assert max(sizes) == 20
    assert said[:2] == [
        "a batch did not fit in memory; continuing with batches of 10",
        "a batch did not fit in memory; continuing with batches of 5",
    ]


def test_not_even_one_row_fitting_is_an_error(monkeypatch):
    def cramped(primed, insertions):
        raise torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(readings, "start_inserted", cramped)
    with pytest.raises(ModelError, match="^not even a single text fits in memory; use a smaller dtype or fewer"):
        rows_of(speaking_model(), byte_level(chat=True), layers="1", tokens="0")


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(primed, insertions):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(readings, "start_inserted", broken)
    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        rows_of(speaking_model(), byte_level(chat=True), layers="1", tokens="0")


def test_memory_does_not_grow_with_the_number_of_prompts():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    peaks = []
    for count in (3, 24):
        prompts = [Prompt(f"c_{n}", f"I love pizza {n}", "c", raw=True) for n in range(count)]
        sources = plan_sources(model, tokenizer, prompts, layers="1", tokens="all")
        settings = replace(SETTINGS, batch_size=8)
        with only_new_objects():
            rows = interpretations(model, tokenizer, sources, templates(tokenizer), settings)
            peaks.append(max(tensor_bytes() for _ in rows))
    assert 0 < peaks[1] <= 1.1 * peaks[0]


def test_gains_of_probabilities_that_vanish_have_a_floor():
    tiny = torch.finfo(torch.float32).tiny
    assert log_gain([1e-30], [1e-34]) == pytest.approx(math.log(1e4))
    assert log_gain([0.5], [0.0]) == pytest.approx(math.log(0.5 / tiny))
    assert log_gain([0.0, 0.5], [0.25, 0.5]) == pytest.approx(math.log(tiny / 0.25) / 2)
    assert log_gain([0.0], [0.0]) == 0
    assert log_gain([1e-42], [0.0]) == 0
