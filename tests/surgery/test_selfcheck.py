"""The certificate of ``interpret check``: what it says of models as they are, and of one that was tampered with."""

import json

import pytest
import torch
import transformers

from interpret import cli
from interpret.anatomy import FAMILIES, text_config
from interpret.surgery.selfcheck import certificate, comparisons
from reference.kinds import ATTENDING, FURTHER, KINDS, MORE_KINDS, READ_PADDING, WHOLE
from reference.tiny import tiny_model

NO = "not available"
WITHOUT_PARTS = ["works"] * 4 + [NO] * 3


def results(model):
    return [proof.result for proof in certificate(model)]


@pytest.mark.parametrize("kind", [*KINDS, *FURTHER, *(kind for kind in WHOLE if kind in MORE_KINDS)])
def test_a_model_as_it_is_passes_what_its_family_has(kind):
    model = tiny_model(kind)
    expected = list(WITHOUT_PARTS) if kind in WHOLE else ["works"] * 7
    if FAMILIES[text_config(model).model_type].experts:  # modules of their own before transformers 5
        expected[-1] = "works" if transformers.__version__.startswith("5") else NO
    if kind == "granitemoehybrid_experts":
        expected = ["works"] * 3 + [NO] * 4
    assert results(model) == [*expected, NO if kind in READ_PADDING else "works"]


@pytest.mark.parametrize("kind", [kind for kind in ATTENDING if kind in MORE_KINDS])
def test_surgery_without_edits_changes_nothing_in_recurrent_layers_and_their_caches(kind):
    found = list(comparisons(tiny_model(kind)))
    assert len(found) == 10
    assert all(one.difference == 0 for one in found)


def test_a_tampered_layer_fails_the_rows_that_read_it():
    model = tiny_model("llama")
    layer = model.model.layers[2]
    forward = layer.forward

    def tampered(*args, **kwargs):
        output = forward(*args, **kwargs)
        return (output[0] * 1.1, *output[1:]) if isinstance(output, tuple) else output * 1.1

    layer.forward = tampered
    assert results(model) == ["works", *["fails"] * 6, "works"]
    (recording,) = [proof for proof in certificate(model) if proof.analyses.startswith("recording")]
    assert "in layer 2, resid_mid + mlp_out is" in recording.reason


def test_a_norm_with_another_weight_fails_no_row_and_another_head_fails_the_logits():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert results(model) == ["works"] * 8
    head = model.lm_head.forward
    forward = model.forward
    model.forward = lambda *args, **kwargs: _doubled(forward(*args, **kwargs))
    assert results(model)[:2] == ["fails", "works"]
    assert model.lm_head.forward == head


def _doubled(output):
    output.logits = 2 * output.logits
    return output


def test_the_command_prints_it_as_json(model_folder, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["check", str(model_folder), "--device", "cpu", "--json"])
    assert not exit_.value.code
    shown = json.loads(capsys.readouterr().out)
    assert [proof["result"] for proof in shown["analyses"]] == ["works"] * 8
    assert len(shown["surgery"]) == 10
    assert {row["difference"] for row in shown["surgery"]} == {0}
    assert shown["family"] == "llama, sequential layers"
