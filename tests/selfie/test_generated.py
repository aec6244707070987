"""The first token that the model generates after a prompt is interpreted like a token of the prompt."""

from dataclasses import replace

import pytest
import torch

from interpret.errors import InputError, ModelError
from interpret.prompts.prompts import Prompt
from interpret.selfie import runs
from interpret.selfie.rows import interpretations
from interpret.selfie.sources import plan_sources
from reference.self_interpretation import (
    PROMPTS,
    SCORED,
    SETTINGS,
    reference_reading,
    rows_of,
    speaking_model,
    templates,
)
from reference.toy_tokenizers import byte_level

TOKENIZER = byte_level(chat=True)


def generated_after(model, text):
    """Return the ids of a text, and the id of the next token that the stock model generates."""
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        return ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("output_tokens", [0, 1, 4])
def test_its_state_is_that_of_a_pass_over_prompt_and_token(kind, output_tokens):
    model = speaking_model(kind)
    settings = replace(SETTINGS, prompt_output_tokens=output_tokens)
    rows = rows_of(model, TOKENIZER, settings=settings, layers="0,2,-1", tokens="0,generated")
    by_name = {template.name: template for template in templates(TOKENIZER)}
    seen = 0
    for row in rows:
        ids, first = generated_after(model, row.prompt)
        assert "".join(row.prompt_token_list[:-1]) == row.prompt
        assert row.prompt_token_list[-1] == TOKENIZER.decode([first])
        if row.token_idx == len(ids):
            with torch.no_grad():
                states = model(torch.tensor([[*ids, first]]), output_hidden_states=True).hidden_states
            state = states[row.layer_idx][0, -1]
            expected, p_with, _ = reference_reading(model, by_name[row.repeat_prompt_name], state, settings, 1)
            assert (row.interpretation, row.current_token) == (expected, TOKENIZER.decode([first]))
            assert row.interpretation_prob == pytest.approx(p_with, abs=1e-6)
            seen += 1
    assert seen == 2 * 2 * 3, "a row for each prompt, template and layer"


def test_the_rows_of_other_tokens_are_as_without_it():
    model = speaking_model()
    alone = rows_of(model, TOKENIZER, layers="1,3", tokens="all")
    both = rows_of(model, TOKENIZER, layers="1,3", tokens="all,generated")
    kept = [row for row in both if row.token_idx is None or row.token_idx < len(row.prompt_token_list) - 1]
    assert len(kept) == len(alone) < len(both)
    for row, other in zip(kept, alone, strict=True):
        assert row.prompt_output == other.prompt_output
        assert row.interpretation == other.interpretation
        assert row.interpretation_prob == pytest.approx(other.interpretation_prob, abs=1e-6)
        assert row.prompt_token_list[:-1] == other.prompt_token_list


def test_the_last_token_and_negative_positions_are_those_of_the_prompt():
    rows = rows_of(speaking_model(), TOKENIZER, prompts=PROMPTS[1:], layers="1", tokens="last,-1,generated")
    positions = {row.token_idx for row in rows if row.kind == "interpretation"}
    n_prompt = len(TOKENIZER(PROMPTS[1].text).input_ids)
    assert positions == {n_prompt - 1, n_prompt}


def test_a_text_that_ends_at_once_has_the_end_token():
    model = speaking_model()
    _, first = generated_after(model, PROMPTS[1].text)
    model.generation_config.eos_token_id = first
    rows = rows_of(model, TOKENIZER, prompts=PROMPTS[1:], layers="1", tokens="generated")
    assert {row.prompt_output for row in rows} == {""}
    assert {row.current_token for row in rows if row.kind == "interpretation"} == {TOKENIZER.decode([first])}


def test_it_has_a_wrong_state_too():
    rows = rows_of(speaking_model(), TOKENIZER, prompts=PROMPTS[1:], layers="1", tokens="generated", settings=SCORED)
    n_prompt = len(TOKENIZER(PROMPTS[1].text).input_ids)
    for row in rows:
        if row.kind == "interpretation":
            assert row.wrong_token_idx in range(n_prompt)
            assert len(row.probability_with_wrong_vector) == len(row.interpretation)


def test_a_prompt_after_which_nothing_can_be_generated_is_dropped():
    model = speaking_model().eval()
    (tower,) = TOKENIZER(" Tower", add_special_tokens=False).input_ids
    with torch.no_grad():
        model.get_input_embeddings().weight[tower] = torch.nan
    sources = plan_sources(model, TOKENIZER, PROMPTS, layers="1", tokens="generated")
    asked = (model, TOKENIZER, sources, templates(TOKENIZER), SETTINGS)
    dropped = {}
    assert {row.name for row in interpretations(*asked, drop=dropped.__setitem__)} == {"taste_1"}
    assert list(dropped) == ["fact_1"]
    assert dropped["fact_1"].startswith("the model generates no token after the prompt; ")
    with pytest.raises(ModelError, match=r"^prompt fact_1: the model generates no token after the prompt; "):
        list(interpretations(*asked))


def test_room_for_it_is_checked_before_anything_runs():
    model, prompt = speaking_model(), Prompt("long_1", "The Eiffel Tower is in the city of the apples", raw=True)
    model.config.max_position_embeddings = len(TOKENIZER(prompt.text).input_ids)
    settings = replace(SETTINGS, prompt_output_tokens=0, new_tokens=1)
    rows_of(model, TOKENIZER, prompts=[prompt], settings=settings, layers="1", tokens="last")
    with pytest.raises(InputError, match="^prompt long_1 has "):
        rows_of(model, TOKENIZER, prompts=[prompt], settings=settings, layers="1", tokens="generated")


def test_a_run_stores_it(tmp_path):
    model = speaking_model()
    options = {"interpretation_prompts": ["object", "object_you_said"], "slots": 2, "layers": "1", "new_tokens": 3}
    run = runs.run(model, TOKENIZER, PROMPTS[1:], tmp_path / "run", tokens="all,generated", progress=False, **options)
    table = run.to_frame()
    n_prompt = len(TOKENIZER(PROMPTS[1].text).input_ids)
    for name in ("object", "object_you_said"):
        of_one = table[table["repeat_prompt_name"] == name]
        assert of_one["token_idx"].dropna().tolist() == list(range(n_prompt + 1))
