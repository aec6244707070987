"""A tiny model and its tokenizer in a folder, as ``save_pretrained`` writes them; tests get copies to damage."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reference.toy_tokenizers import save_words


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    """The model that ``saved`` holds; tests must not change it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def saved(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as written by save_pretrained; tests must not change it."""
    folder = tmp_path_factory.mktemp("saved")
    original.save_pretrained(folder, safe_serialization=True)
    save_words(folder, eos_token="<end>", unk_token="<unk>")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))
