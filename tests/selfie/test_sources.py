"""Which states are interpreted, and where they are inserted."""

import re
from dataclasses import replace

import pytest
import torch

from interpret.errors import InputError
from interpret.prompts.prompts import Prompt
from interpret.selfie.sources import plan_sources
from reference.kinds import L
from reference.overlay import decoder_layers
from reference.self_interpretation import (
    PROMPTS,
    SETTINGS,
    reference_reading,
    rows_of,
    speaking_model,
    templates,
)
from reference.toy_tokenizers import byte_level


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


def test_a_prompt_may_name_its_own_states():
    prompts = [
        Prompt("one", "extra cheese", raw=True, states=((1, 0), (-1, -1), (1, 0))),
        Prompt("two", "pizza", raw=True),
    ]
    one, two = plan_sources(speaking_model(), byte_level(chat=True), prompts, layers="2", tokens="0")
    assert list(one.pairs) == [(1, 0), (L, len(one.tokenised.ids) - 1)]
    assert two.pairs == [(2, 0)]
    with pytest.raises(InputError, match=r"^prompt one: token 99 does not exist"):
        plan_sources(speaking_model(), byte_level(chat=True), [replace(prompts[0], states=((1, 99),))])


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
