"""Runs of three analyses over one prompt, joined on prompt, token and state."""

import re

import pandas as pd
import pytest
import torch

from interpret.errors import InputError
from interpret.records import state_name
from interpret.storage import join_runs, read_run
from reference.commands import FACT_PROMPTS, json_file, run
from reference.kinds import L

PROMPT, SUBJECT = FACT_PROMPTS[0]


@pytest.fixture(scope="module")
def runs(model_folder, tmp_path_factory):
    """Interpretations, a logit lens and a trace of the same raw prompt."""
    folder = tmp_path_factory.mktemp("runs")
    example = {"prompt": PROMPT, "category": "fact", "raw": True, "subject": SUBJECT}
    examples = json_file(folder / "examples.json", {"examples": [example]})
    fact = {"known_id": 1, "subject": SUBJECT, "attribute": "Paris", "prompt": PROMPT}
    facts = json_file(folder / "facts.json", [fact])
    model = ("--model", model_folder, "--device", "cpu")
    said = ("--layers", "all", "--tokens", "all", "--new-tokens", 2, "--interpretation-prompt", "explain")
    assert run("selfie", "--examples", examples, "--output", folder / "said", *model, *said) == 0
    lens = ("--tokens", "all", "--top", 1)
    assert run("probe", "lens", "--examples", examples, "--output", folder / "lens", *model, *lens) == 0
    traced = ("--mediator", "hidden", "--mediator", "mlp_window", "--samples", 2, "--no-filter", "--window", 1)
    assert run("trace", "--facts", facts, "--output", folder / "traced", *model, *traced) == 0
    return {name: folder / name for name in ("said", "lens", "traced")}


def test_each_joined_row_is_about_one_state(runs, opened):
    model, tokenizer = opened
    table = join_runs(runs)
    n_tokens = len(tokenizer(PROMPT).input_ids)
    # Outputs of layers before the last: states that interpretations read as inputs of the next layer.
    assert set(zip(table["token_idx"], table["state"], strict=True)) == {
        (token, f"resid_post.{layer}") for token in range(n_tokens) for layer in range(L - 1)
    }
    assert set(table["traced.mediator"]) == {"hidden"}
    assert (table["said.layer_idx"] == table["traced.layer_idx"] + 1).all()
    assert (table["said.layer_idx"] == table["lens.layer_idx"]).all()
    for row in table.itertuples(index=False):
        values = dict(zip(table.columns, row, strict=True))
        assert values["said.current token"] == values["traced.token"] == values["lens.token"]
        # The lens at that state, from the model's own hidden states: they are the inputs of layers.
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        hidden = model(ids, output_hidden_states=True).hidden_states[int(values["said.layer_idx"])]
        logits = model.lm_head(model.model.norm(hidden[0, values["token_idx"]]))
        assert torch.argmax(logits).item() == values["lens.prediction_id"]


def test_an_outer_join_keeps_what_one_run_has(runs):
    table = join_runs(runs, how="outer")
    states = set(table["state"])
    assert {"resid_pre.0", f"resid_post.{L - 1}", "final_norm", "mlp_out.0"} <= states
    of_mlp = table[table["state"] == "mlp_out.0"]
    assert of_mlp["said.interpretation_text"].isna().all()
    assert set(of_mlp["traced.mediator"]) == {"mlp_window"}
    last = table[table["state"] == f"resid_post.{L - 1}"]
    assert last["said.interpretation_text"].isna().all()
    assert last["lens.prediction"].notna().all()
    assert last["traced.indirect_effect"].notna().all()


def test_two_runs_join_as_pandas_joins_their_keys(runs):
    pair = {name: runs[name] for name in ("lens", "traced")}
    frames = {name: read_run(folder).to_frame() for name, folder in pair.items()}
    for frame in frames.values():
        frame["state"] = [state_name(*place) for place in zip(frame["site"], frame["layer_idx"], strict=True)]
    expected = pd.merge(*frames.values(), on=["prompt", "token_idx", "state"])
    found = join_runs(pair)
    assert len(found) == len(expected) > 0
    assert sorted(found["traced.indirect_effect"]) == sorted(expected["indirect_effect"])


@pytest.mark.parametrize(
    ("site", "layer", "name"),
    [("resid_pre", 0, "resid_pre.0"), ("resid_pre", 3, "resid_post.2"), ("final_norm", 4, "final_norm")],
)
def test_a_state_has_one_name(site, layer, name):
    assert state_name(site, layer) == name


def test_runs_that_cannot_be_joined_are_refused(runs, model_folder, tmp_path):
    with pytest.raises(InputError, match=r"^joining needs two or more runs; got 1$"):
        join_runs({"lens": runs["lens"]})
    example = {"prompt": PROMPT, "category": "fact", "raw": True}
    examples = json_file(tmp_path / "examples.json", {"examples": [example]})
    output = tmp_path / "logits"
    assert run("probe", "logits", "--examples", examples, "--output", output, "--model", model_folder) == 0
    message = f"{output}: its rows are not about states of tokens; the table has no column 'token_idx'"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        join_runs({"lens": runs["lens"], "shares": output})
