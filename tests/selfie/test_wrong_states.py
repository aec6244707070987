"""Wrong states: states of other tokens of the prompt, inserted for comparison."""

from dataclasses import replace

import pytest
import torch

from interpret.prompts.chat import framed
from interpret.prompts.prompts import Prompt
from interpret.prompts.tokens import tokenise
from reference.overlay import reference_forward
from reference.self_interpretation import (
    PROMPTS,
    SCORED,
    rows_of,
    speaking_model,
    templates,
)
from reference.toy_tokenizers import byte_level


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


def test_a_single_requested_token_is_not_compared_with_the_chat_template():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    prompt = tokenise(tokenizer, framed(tokenizer, PROMPTS[0].text, "model"))
    *others, last = prompt.content
    assert len(prompt.content) < len(prompt.ids)
    rows = rows_of(model, tokenizer, PROMPTS[:1], SCORED, layers="all", tokens=str(last))
    assert {row.wrong_token_idx for row in rows if row.kind == "interpretation"} <= set(others)


def test_a_prompt_of_one_token_has_no_wrong_state():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    rows = rows_of(model, tokenizer, [Prompt("c_1", "a", "c", raw=True)], SCORED, layers="1", tokens="all")
    assert (rows[1].wrong_token_idx, rows[1].gain_over_wrong_vector) == (None, None)
