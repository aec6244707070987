"""What needs a package that is an extra says so in one line, and everything else works without it."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

from interpret.anatomy import releases
from interpret.errors import ModelError
from interpret.models import extras
from interpret.models.opening import load
from reference.tiny import resize_vocabulary, tiny_model
from reference.toy_tokenizers import sentence_piece_model

EXTRA = "patch" if transformers.__version__ == "4.34.0" else None
"""The extra of all packages beside the release that is patched; otherwise each has its own."""


@pytest.fixture
def without(monkeypatch):
    """Make packages impossible to import."""

    def hide(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


def line(extra: str) -> str:
    return f'pip install "llm-interpret[{EXTRA or extra}]"'


def refused(message: str, *arguments: object, **settings: object) -> None:
    with pytest.raises(ModelError) as caught:
        load(*arguments, **settings)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_without_accelerate_a_model_opens_with_the_same_weights(model_folder, without):
    wanted, _ = load(model_folder, device="cpu")
    without("accelerate")
    model, tokenizer = load(model_folder, device="cpu")
    assert model.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted.state_dict()[name]), name
    ids = tokenizer("The Eiffel Tower", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, wanted(ids).logits)


def test_a_device_map_without_accelerate_names_the_extra(model_folder, without):
    without("accelerate")
    refused(f"device_map needs accelerate: {line('accelerate')}", model_folder, device_map="auto")


@pytest.fixture
def piece_folder(tmp_path: Path) -> Path:
    """A model whose tokenizer is only a file of SentencePiece."""
    model = tiny_model("llama")
    resize_vocabulary(model, 420)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece_model())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return tmp_path


@pytest.mark.parametrize("missing", ["sentencepiece", "google.protobuf"])
def test_a_tokenizer_of_sentencepiece_names_the_extra(missing, piece_folder, without, monkeypatch):
    def fail(*arguments: object, **settings: object) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file")

    _, tokenizer = load(piece_folder, device="cpu")
    assert tokenizer("I love pizza").input_ids
    without(missing)
    # What transformers 5 says. It has looked for its packages before, when it was imported.
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    needs = f"the tokenizer of {str(piece_folder)!r} needs sentencepiece"
    refused(f"{needs}: {line('sentencepiece')}", piece_folder, device="cpu")


def test_another_error_of_a_tokenizer_stays_as_it_is(model_folder, without, monkeypatch):
    def fail(*arguments: object, **settings: object) -> None:
        raise ValueError("damaged")

    without("sentencepiece")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"cannot open the tokenizer of .*: damaged\. Save it"):
        load(model_folder, device="cpu")


@pytest.mark.parametrize(("release", "extra"), [("4.34.0", "patch"), ("5.24.0", "accelerate")])
def test_beside_the_release_that_is_patched_its_own_extra_is_named(release, extra, monkeypatch):
    monkeypatch.setattr(releases.transformers, "__version__", release)  # transformers 5 replaces its own module
    assert extras.missing("accelerate", "this") == f'this needs accelerate: pip install "llm-interpret[{extra}]"'


def test_a_module_in_a_missing_package_is_not_installed():
    assert not extras.is_installed("no_such_package.module")
    assert extras.is_installed("torch.nn")
