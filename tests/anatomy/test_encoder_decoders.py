"""Encoder-decoder models: refused by name by all but attribution, and compared with their own logits."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

import interpret
from interpret.anatomy import ENCODER_DECODERS, FAMILIES, anatomy_of, check_logits
from interpret.errors import InputError, UnsupportedModelError
from interpret.surgery.selfcheck import certificate
from other_device.calls import CALLS
from reference.commands import run
from reference.toy_seq2seq import KINDS, toy_seq2seq

REFUSAL = (
    r"^T5ForConditionalGeneration is an encoder-decoder model\. Its predictions can be attributed to tokens "
    r"\(interpret.attribute, 'interpret attribute'\); everything else takes decoder-only models$"
)
ATTRIBUTION = {name for name in CALLS if name.startswith("attribute (")}
OF_LAYERS = {name for name in ATTRIBUTION if "layer_" in name or "deeplift" in name}
RUNNING_LAYERS = "attribute (layers computed again in backward)"


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    """A T5 that reads the texts of the calls."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=450, decoder_start_token_id=0, **sizes)).eval()


def test_every_family_has_a_toy() -> None:
    assert {toy_seq2seq(kind).model.config.model_type for kind in KINDS} == ENCODER_DECODERS.keys()


@pytest.mark.parametrize("name", sorted(CALLS.keys() - ATTRIBUTION | {RUNNING_LAYERS}))
def test_all_but_attribution_refuses_them_by_name(name: str, t5: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSAL):
        CALLS[name](t5)


@pytest.mark.parametrize("name", sorted(OF_LAYERS))
def test_methods_of_layers_refuse_them_by_name(name: str, t5: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="^method '.*' does not support encoder-decoder models; these do: saliency, "):
        CALLS[name](t5)


def test_a_description_is_refused_by_name(t5: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSAL):
        interpret.describe(t5)


def test_the_row_of_a_decoder_of_the_same_type_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "bart", FAMILIES["opt"])
    with pytest.raises(UnsupportedModelError, match="^BartForConditionalGeneration is an encoder-decoder model"):
        anatomy_of(toy_seq2seq("bart").model)


class Tempered(T5ForConditionalGeneration):
    """A T5 that divides its logits."""

    def forward(self, *args: Any, **options: Any) -> Any:
        """Divide the logits."""
        output = super().forward(*args, **options)
        output.logits = output.logits / 2
        return output


def test_a_model_whose_logits_are_computed_otherwise_is_refused(t5: PreTrainedModel) -> None:
    check_logits(t5)
    with pytest.raises(UnsupportedModelError, match="^Tempered .* its last state gives a logit of .*, where the"):
        check_logits(Tempered(t5.config).eval())


def test_a_certificate_says_what_works(t5: PreTrainedModel) -> None:
    found = [(proof.analyses, proof.result) for proof in certificate(t5)]
    assert found == [("attribution to tokens", "works"), ("all other analyses, surgery", "not available")]
    assert next(certificate(Tempered(t5.config).eval())).result == "fails"


def test_the_command_shows_the_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = toy_seq2seq("t5")
    for part in (toy.model, toy.tokenizer):
        part.save_pretrained(tmp_path)
    assert run("check", tmp_path, "--device", "cpu") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "family T5, FLAN-T5: an encoder and a decoder size 2 and 3 layers, hidden width 16" in shown
    assert "attribution to tokens works logits computed from states are the model's own" in shown
