import hashlib
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from interpret.errors import RunError
from interpret.storage import provenance
from interpret.storage.provenance import file_sha256, versions, weights_sha256


def test_versions_name_python_the_platform_and_the_libraries() -> None:
    found = versions()
    assert {"python", "platform", "torch", "transformers", "llm-interpret"} <= set(found)
    assert found["python"] == sys.version.split()[0]
    assert found["transformers"] == version("transformers")


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LIBRARIES", ("torch", "no-such-library"))
    assert list(versions()) == ["python", "platform", "torch"]


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(
        RunError, match=f"^{re.escape(str(tmp_path / 'no'))}: cannot be read: No such file or directory$"
    ):
        file_sha256(tmp_path / "no")


def test_weights_sha256_changes_with_any_weight_file_and_with_nothing_else(tmp_path: Path) -> None:
    first, second = tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    whole = weights_sha256(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"the same weights in the older format")
    assert weights_sha256(tmp_path) == whole
    second.write_bytes(b"twO")
    assert weights_sha256(tmp_path) != whole
    shutil.copy(first, second)
    first.write_bytes(b"two")
    assert weights_sha256(tmp_path) != whole, "swapped shards are other weights"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(RunError) as caught:
        weights_sha256(tmp_path)
    looked = "looked for *.safetensors, pytorch_model*.bin, *.gguf"
    assert str(caught.value) == f"{tmp_path} contains no weights; {looked}"
