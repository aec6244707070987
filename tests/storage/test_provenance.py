import hashlib
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from interpret.errors import RunError
from interpret.storage import provenance
from interpret.storage.provenance import file_sha256, versions


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
