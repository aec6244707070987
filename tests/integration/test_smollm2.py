"""Compare the real demo model with logits that transformers 4.57.6 computes from the same GGUF file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.models.demo import demo_model_folder
from interpret.models.opening import load

REFERENCE = Path(__file__).parents[1] / "data" / "smollm2_logits.npz"
"""texts [3]; for each text i, ids_i [T] and argmax_i [T] of every position; last_logits [3, V], last position only."""
WEIGHTS_SHA256 = "1e7c8a1c726e693f3ef812fec44c0efdf79020fe1e36d5cd8a07e0341da3e3aa"
"""Hash of the float32 bytes of all tensors, sorted by name; it depends only on the conversion of the weights."""


@pytest.fixture(scope="module")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load("demo", device="cpu")


@pytest.mark.parametrize("index", range(3))
def test_demo_model_computes_the_reference_logits(
    index: int, demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer = demo
    reference = np.load(REFERENCE)
    inputs = tokenizer(str(reference["texts"][index]), return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == reference[f"ids_{index}"].tolist()
    with torch.no_grad():
        logits = model(**inputs).logits[0].numpy()  # [T, V]
    assert logits.argmax(-1).tolist() == reference[f"argmax_{index}"].tolist()
    # Bit-identical on the machine that made the reference. Other processors and numbers of threads sum in another
    # order (differences of 4e-5). A wrong rope_theta changes logits by at least 0.8, a wrong permutation by 6.
    np.testing.assert_allclose(logits[-1], reference["last_logits"][index], rtol=0, atol=1e-3)


def test_demo_weights_are_the_known_ones() -> None:
    digest = hashlib.sha256()
    with safe_open(demo_model_folder() / "model.safetensors", framework="np") as weights:
        for name in sorted(weights.keys()):
            digest.update(weights.get_tensor(name).tobytes())
    assert digest.hexdigest() == WEIGHTS_SHA256


def test_demo_model_is_whole_and_tied(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = demo
    assert model.num_parameters() == 134_515_008
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.rope_theta == 100_000
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert "token_type_ids" not in tokenizer("a")


def test_demo_model_generates_quietly(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = demo
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(generated[0]) == "The capital of France is Paris."
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.15), (4, 0.45)])
def test_rounded_demo_model_stays_near(
    bits: int, bound: float, demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer = demo
    rounded, _ = load("demo", device="cpu", **{f"load_in_{bits}bit": True})  # type: ignore[arg-type]
    for text in np.load(REFERENCE)["texts"]:
        inputs = tokenizer(str(text), return_tensors="pt")
        with torch.no_grad():
            wanted, got = model(**inputs).logits, rounded(**inputs).logits
        assert (got - wanted).norm() / wanted.norm() < bound
