"""What a command does before its work: it reads the weights of a model once, for the model."""

import gc
from pathlib import Path

import pytest

from interpret.storage import cache
from reference.commands import run

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The file of the weights, which depends on the release of transformers."""


def test_a_second_start_does_not_read_the_weights_for_their_hash(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_ENTRIES", str(tmp_path / "entries"))
    monkeypatch.setattr(cache, "_COARSEST_CLOCK_NS", -(10**12))  # as if the folder had been written some time ago
    read, plain = [], cache.file_sha256

    def counted(path: Path) -> str:
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(cache, "file_sha256", counted)
    for start in ("first", "second"):
        options = ("--prompt", "ab", "--new-tokens", "1", "--model", model_folder, "--device", "cpu")
        assert run("attribute", *options, "--output", tmp_path / start) == 0
    assert read == [path.name for path in model_folder.iterdir() if path.name in WEIGHTS]


def test_garbage_is_collected_as_before_after_a_command() -> None:
    before = gc.get_threshold()
    assert run("--help") == 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
