"""Folders that are refused, and what is needed to open one."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from interpret.errors import RunError
from interpret.storage.disk import replace_whole
from interpret.storage.run_folder import read_run, read_table
from reference.small_runs import (
    UNITS,
    Row,
    contents,
    finish,
    manifest_of,
    opened,
    refused,
    work,
    worker,
)

WHAT_TO_DO = "give another --output folder, or delete this one"


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run with two of four units done, and the next one cut off in both files."""
    with opened(tmp_path) as run:
        work(run, until=2)
    for name in ("table.csv", "progress.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"half')
    return tmp_path


def test_another_identity_is_refused_key_by_key(half: Path) -> None:
    refused(
        half,
        f"{half} contains another run:\n"
        '  dtype: not set in the folder, "float32" now\n'
        "  layers: [1, 2] in the folder, [1] now\n"
        '  model.sha256: "00ff" in the folder, "00fe" now\n'
        "  seed: 7 in the folder, not set now\n" + WHAT_TO_DO,
        identity={"model": {"name": "tiny", "sha256": "00fe"}, "layers": [1], "dtype": "float32"},
    )


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (["a", "x", "c", "d"], "unit 1 is 'b' in the folder, 'x' now"),
        (["b", "a", "c", "d"], "unit 0 is 'a' in the folder, 'b' now"),
        (["a"], "unit 1 is 'b' in the folder, None now"),
    ],
)
def test_other_units_are_refused(half: Path, units: list[str], message: str) -> None:
    refused(half, f"{half} contains another run: {message}; {WHAT_TO_DO}", units=units)


def test_a_unit_listed_twice_is_refused(tmp_path: Path) -> None:
    message = "the unit 'a' is listed twice; the units of a run need unique names"
    refused(tmp_path / "new", message, units=["a", "b", "a"])
    assert not (tmp_path / "new").exists()


def test_a_table_without_manifest_is_refused(half: Path) -> None:
    (half / "manifest.json").unlink()
    refused(half, f"{half} has a table.csv but no manifest.json, so its run is unknown; {WHAT_TO_DO}")


def test_a_manifest_without_journal_is_refused(half: Path) -> None:
    (half / "progress.jsonl").unlink()
    refused(half, f"{half} has a manifest.json but no progress.jsonl, so the run cannot be resumed; {WHAT_TO_DO}")


def test_a_folder_of_other_files_is_used_beside_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with opened(tmp_path) as run:
        work(run)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["{}", "[]", "{", "", '{"format": "llm-interpret run, format 2"}'])
def test_a_manifest_of_something_else_is_refused(half: Path, text: str) -> None:
    (half / "manifest.json").write_text(text)
    refused(
        half, f"{half / 'manifest.json'} is not the manifest of a run, or was written by a newer version; {WHAT_TO_DO}"
    )


@pytest.mark.parametrize("line", ["{}", "nonsense", '["a"]', '{"unit": "a"}'])
def test_a_journal_line_of_something_else_is_refused(half: Path, line: str) -> None:
    lines = (half / "progress.jsonl").read_text().splitlines(keepends=True)
    (half / "progress.jsonl").write_text("".join([lines[0], line + "\n", *lines[1:]]))
    refused(half, f"{half / 'progress.jsonl'}: line 2 is not a valid entry; {WHAT_TO_DO}")


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": 10**30},
        {"size": "12"},
        {"size": 12.5},
        {"size": True},
        {"size": None},
        {"size": 0},
        {"rows": -1},
        {"rows": "1"},
        {"crc32": None},
        {"unit": 1},
        {"dropped": 1},
        {"more": 1},
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_journal_line_with_impossible_numbers_is_refused(half: Path, change: dict[str, Any], number: int) -> None:
    path = half / "progress.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()[:2]]
    lines[number - 1] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(half, f"{path}: line {number} is not a valid entry; {WHAT_TO_DO}")
    if change != {"size": 0}:
        with pytest.raises(RunError, match=f"line {number} is not a valid entry"):
            read_table(half, Row)


def test_a_size_beyond_the_table_is_refused_without_reading_that_much(half: Path) -> None:
    path = half / "progress.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines()[:2])
    path.write_text(json.dumps(first) + "\n" + json.dumps(second | {"size": 2**62}) + "\n")
    refused(half, f"{half / 'table.csv'} was changed after unit 'b' was written; {WHAT_TO_DO}")


def test_a_journal_line_nested_too_deeply_is_refused(half: Path) -> None:
    (half / "progress.jsonl").write_text("[" * 200_000 + "\n")
    refused(half, f"{half / 'progress.jsonl'}: line 1 is not a valid entry; {WHAT_TO_DO}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identity", None),
        ("identity", []),
        ("counts", None),
        ("counts", {"in": 4, "kept": "2", "dropped": 0, "rows": 1}),
        ("circumstances", None),
        ("dropped", None),
        ("continuations", 1),
        ("finished", 1),
    ],
)
def test_a_manifest_without_what_is_needed_is_refused(half: Path, key: str, value: Any) -> None:
    path = half / "manifest.json"
    path.write_text(json.dumps({**manifest_of(half), key: value}))
    message = f"{path} is damaged: {key!r} is {value}; {WHAT_TO_DO}"
    refused(half, message)
    with pytest.raises(RunError) as caught:
        read_run(half, Row)
    assert str(caught.value) == message
    if value is None:
        path.write_text(json.dumps({name: one for name, one in manifest_of(half).items() if name != key}))
        refused(half, message)


@pytest.mark.parametrize("name", ["table.csv", "progress.jsonl", "unfinished.jsonl", "grids", "peaks.csv"])
@pytest.mark.parametrize("text", ["mine", "mine\n", '{"unit": "a", "rows": 0}\n'])
def test_a_foreign_file_is_refused_and_not_changed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    message = f"{tmp_path} has a {name} but no manifest.json, so its run is unknown; {WHAT_TO_DO}"
    refused(tmp_path, message, others=["grids", "peaks.csv"])
    assert contents(tmp_path) == {name: text.encode()}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", ["manifest.json", "table.csv", "progress.jsonl", "unfinished.jsonl", "grids"])
def test_a_link_in_the_place_of_a_file_is_refused_and_not_followed(
    tmp_path: Path, name: str, there: bool, begun: bool
) -> None:
    folder, target = tmp_path / "run", tmp_path / "mine"
    if begun:
        with opened(folder) as run:
            work(run, until=2)
        (folder / name).unlink(missing_ok=True)
    else:
        folder.mkdir()
    if there:
        target.write_text("")
    (folder / name).symlink_to(target)
    message = f"{folder / name} is not a plain file, so a run would write to another place; {WHAT_TO_DO}"
    with pytest.raises(RunError) as caught, opened(folder, others=["grids"]):
        pytest.fail("the run was opened")
    assert str(caught.value) == message
    assert target.exists() == there
    assert not there or target.read_text() == ""


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("manifest.json", "peaks.csv"):
        (tmp_path / "run" / f".{name}.tmp").symlink_to(target)
    with opened(tmp_path / "run") as run:
        work(run)
    replace_whole(tmp_path / "run" / "peaks.csv", b"peaks")
    assert target.read_text() == "mine"
    assert sorted(contents(tmp_path / "run")) == ["manifest.json", "peaks.csv", "progress.jsonl", "table.csv"]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to write raises the error of a read-only disk."""
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *more, **options)

    def refused_write(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for name in ("write_bytes", "replace", "unlink", "touch"):
        monkeypatch.setattr(Path, name, refused_write)


def test_a_finished_run_is_opened_on_a_read_only_disk(
    tmp_path: Path, unbroken: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    with opened(tmp_path) as run:
        work(run)
    replace_whole(tmp_path / "peaks.csv", b"peaks")
    request.getfixturevalue("read_only")
    with opened(tmp_path) as run:
        assert (run.pending, run.counts["kept"]) == ([], 3)
    replace_whole(tmp_path / "peaks.csv", b"peaks")  # the same contents
    with pytest.raises(RunError, match="peaks.csv cannot be written: Read-only file system"):
        replace_whole(tmp_path / "peaks.csv", b"others")


def test_an_unfinished_run_on_a_read_only_disk_is_refused(half: Path, read_only: None) -> None:
    refused(half, f"{half} cannot be written, and its run is not finished; copy it to a writable disk")


def test_a_journal_that_lost_lines_is_refused(half: Path) -> None:
    (half / "progress.jsonl").write_bytes(b"")
    refused(half, f"{half / 'progress.jsonl'} has fewer lines than manifest.json counts units; {WHAT_TO_DO}")


def edit(folder: Path, change: Callable[[bytes], bytes]) -> None:
    (folder / "table.csv").write_bytes(change((folder / "table.csv").read_bytes()))


@pytest.mark.parametrize(
    ("change", "unit"),
    [
        (lambda table: table.replace("é0".encode(), b"eh0", 1), "a"),
        (lambda table: table.replace(b'"""b""', b'"""x""', 1), "b"),
        (lambda table: table[:-20], "b"),
        (lambda table: table[:26], "a"),
    ],
)
def test_a_table_edited_by_hand_is_refused(half: Path, change: Callable[[bytes], bytes], unit: str) -> None:
    before = (half / "table.csv").read_bytes()
    edit(half, change)
    assert (half / "table.csv").read_bytes() != before
    refused(half, f"{half / 'table.csv'} was changed after unit {unit!r} was written; {WHAT_TO_DO}")


@pytest.mark.parametrize("done", [0, 2])
def test_a_table_with_another_header_is_refused(tmp_path: Path, done: int) -> None:
    with opened(tmp_path) as run:
        work(run, until=done)
    edit(tmp_path, lambda table: b"U" + table[1:])
    refused(tmp_path, f"{tmp_path / 'table.csv'}: its header is not that of this version; {WHAT_TO_DO}")


def test_a_table_deleted_after_units_were_written_is_refused(half: Path) -> None:
    (half / "table.csv").unlink()
    refused(half, f"{half / 'table.csv'}: cannot open or close the run: No such file or directory")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", f"{tmp_path / 'file'}: cannot open or close the run: File exists")


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    message = f"{tmp_path} is being written by another process; wait for it or stop it"
    with opened(tmp_path) as run:
        refused(tmp_path, message)
        with worker(tmp_path, 3) as process:
            assert finish(process) == ([], f"interpret.errors.RunError: {message}")
        work(run)
    with opened(tmp_path) as run:
        assert run.pending == []


def test_the_lock_is_given_back_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path):
        raise ZeroDivisionError
    left = [link for link in Path("/proc/self/fd").iterdir() if in_folder(link, tmp_path)]
    assert left == [], "a descriptor was left open"
    with FileLock(tmp_path / ".progress.jsonl.lock", timeout=0):
        pass


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".progress.jsonl.lock").symlink_to(tmp_path / "mine")
    refused(tmp_path / "run", f"{tmp_path / 'run' / '.progress.jsonl.lock'} is a link, not a lock file; remove it")
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_lock_is_given_back_even_while_a_child_holds_its_descriptor(tmp_path: Path) -> None:
    with opened(tmp_path):
        held = [os.dup(int(link.name)) for link in Path("/proc/self/fd").iterdir() if in_folder(link, tmp_path)]
    assert held
    with opened(tmp_path) as run:
        assert run.pending == UNITS
    for descriptor in held:
        os.close(descriptor)


def in_folder(descriptor: Path, folder: Path) -> bool:
    """Whether a link of /proc/self/fd points into a folder."""
    return descriptor.exists() and descriptor.readlink().is_relative_to(folder)
