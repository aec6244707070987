"""The cache folder, and the hashes kept in it: right after every change, and without reading an unchanged file."""

import json
import os
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from interpret.errors import RunError
from interpret.storage import cache
from interpret.storage.cache import cache_folder, remembered_sha256, weights_sha256

LONG_AGO = time.time_ns() - 10**12


@pytest.fixture(autouse=True)
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of kept hashes."""
    monkeypatch.setattr(cache, "_ENTRIES", str(tmp_path / "entries"))
    return tmp_path / "entries"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read for their hash, in order."""
    read: list[Path] = []
    plain = cache.file_sha256

    def counted(path: Path) -> str:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(cache, "file_sha256", counted)
    return read


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that seems to have been written some time ago: the time of its change cannot be set, so the clock is."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)
    return path


def hex_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_an_unchanged_file_is_read_once(file: Path, reads: list[Path]) -> None:
    assert [remembered_sha256(file) for _ in range(3)] == [hex_of(b"weights")] * 3
    assert reads == [file]


def test_a_second_start_does_not_read_the_weights(file: Path, reads: list[Path]) -> None:
    first = weights_sha256(file.parent)
    assert weights_sha256(file.parent) == first
    assert reads == [file]


def rewritten(path: Path) -> None:
    """Write other bytes of the same number, and set the time of modification back, as rsync and tar do."""
    before = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    """Move another file of the same size, with the same time of modification, to its place."""
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    "change",
    [rewritten, replaced, lambda path: path.write_bytes(b"WEIGHTS"), lambda path: path.write_bytes(b"longer weights")],
    ids=["rewritten", "replaced", "written", "longer"],
)
def test_a_changed_file_is_noticed(change: Callable[[Path], object], file: Path, reads: list[Path]) -> None:
    remembered_sha256(file)
    change(file)
    assert remembered_sha256(file) == hex_of(file.read_bytes()) != hex_of(b"weights")
    assert len(reads) == 2


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path, entries: Path, reads: list[Path]) -> None:
    """It may be written again within the same step of the clock, which would leave its times as they are."""
    (tmp_path / "new").write_bytes(b"new")
    assert remembered_sha256(tmp_path / "new") == hex_of(b"new")
    assert not entries.exists()
    assert remembered_sha256(tmp_path / "new") == hex_of(b"new")
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    file: Path, entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cache.file_sha256

    def changed_meanwhile(path: Path) -> str:
        digest = plain(path)
        path.write_bytes(b"WEIGHTS")
        return digest

    monkeypatch.setattr(cache, "file_sha256", changed_meanwhile)
    remembered_sha256(file)
    assert not entries.exists()


def test_two_files_have_two_entries_and_a_link_that_of_its_target(file: Path, entries: Path, reads: list[Path]) -> None:
    other, link = file.with_name("other"), file.with_name("link")
    other.write_bytes(b"other")
    link.symlink_to(file)
    assert [remembered_sha256(path) for path in (file, other, link)] == [
        hex_of(b"weights"), hex_of(b"other"), hex_of(b"weights"),
    ]  # fmt: skip
    assert reads == [file, other]
    assert len(list(entries.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": 1}', '{"sha256": "short"}'])
def test_a_damaged_entry_is_made_again(content: str, file: Path, entries: Path, reads: list[Path]) -> None:
    remembered_sha256(file)
    (entry,) = entries.iterdir()
    whole = entry.read_bytes()
    entry.write_text(content)
    assert remembered_sha256(file) == hex_of(b"weights")
    assert entry.read_bytes() == whole
    assert len(reads) == 2


def test_an_entry_says_what_it_is_about(file: Path, entries: Path) -> None:
    remembered_sha256(file)
    (entry,) = entries.iterdir()
    found = json.loads(entry.read_text())
    assert (found["path"], found["bytes"], found["sha256"]) == (str(file), 7, hex_of(b"weights"))


def test_without_a_cache_that_can_be_written_the_file_is_read(
    file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_ENTRIES", str(file / "inside a file"))
    assert [remembered_sha256(file) for _ in range(2)] == [hex_of(b"weights")] * 2
    assert len(reads) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone: cannot be read: No such file or directory"):
        remembered_sha256(tmp_path / "gone")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"INTERPRET_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"INTERPRET_CACHE": "~/a", "HOME": "/c"}, "/c/a"),
        ({"INTERPRET_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/llm-interpret"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/llm-interpret"),
    ],
)
def test_cache_folder_follows_the_environment(
    environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INTERPRET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


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
