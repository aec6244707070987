"""The further files of units, and parts of units that are dropped: written whole, recorded, and noticed if damaged."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from interpret.errors import RunError
from interpret.storage.journal import read_journal
from interpret.storage.parts import UnitParts
from interpret.storage.run import Run
from interpret.storage.run_folder import read_run
from reference.damage import DAMAGES
from reference.small_runs import Killed, Row, Stop, manifest_of, opened, rows_of

FILES = {"files/a.bin": b"first", "files/b.bin": b"second"}


def fill(run: Run) -> None:
    """Write the pending units, each with a file, some with a part that is dropped."""
    for unit in run.pending:
        run.write(
            unit,
            rows_of(unit),
            files={f"files/{unit}.bin": unit.encode() * 9},
            dropped_parts={"part 1": "too large"} if unit == "b" else {},
        )


def results_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a run but the manifest, which tells times, and the hidden file that locks the run."""
    left_out = {"manifest.json", ".progress.jsonl.lock"}
    files = {path for path in folder.rglob("*") if path.is_file() and path.name not in left_out}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_can_be_written_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with opened(tmp_path, others=["files"]) as run:
        fill(run)
        assert run.damaged == []
    whole = results_of(tmp_path)
    damage(tmp_path / "files" / "b.bin")
    with opened(tmp_path, others=["files"]) as run:
        assert run.damaged == ["b"]
        run.write_again("b", {"files/b.bin": b"b" * 9})
        assert run.damaged == []
    assert results_of(tmp_path) == whole


def test_a_file_of_the_same_size_in_its_place_is_noticed(tmp_path: Path) -> None:
    with opened(tmp_path, others=["files"]) as run:
        fill(run)
    shutil.copy(tmp_path / "files" / "a.bin", tmp_path / "files" / "d.bin")
    found = read_run(tmp_path, Row)
    assert found.intact_file("files/a.bin", found.files["files/a.bin"]).read_bytes() == b"a" * 9
    with pytest.raises(RunError, match=r"files/d\.bin is missing or was changed; the command of the run makes it"):
        found.intact_file("files/d.bin", found.files["files/d.bin"])


def test_a_file_that_is_made_again_with_other_digits_is_the_runs_from_then_on(tmp_path: Path) -> None:
    with opened(tmp_path, others=["files"]) as run:
        fill(run)
    table = (tmp_path / "table.csv").read_bytes()
    (tmp_path / "files" / "b.bin").unlink()
    with opened(tmp_path, others=["files"]) as run:
        run.write_again("b", {"files/b.bin": b"other"})
    with opened(tmp_path, others=["files"]) as run:
        assert (run.damaged, run.pending, run.dropped_parts) == ([], [], {"b": {"part 1": "too large"}})
    assert read_journal(tmp_path / "progress.jsonl")[0][1].files.keys() == {"files/b.bin"}
    assert (tmp_path / "table.csv").read_bytes() == table


def test_only_a_finished_unit_is_written_again(tmp_path: Path) -> None:
    with opened(tmp_path) as run, pytest.raises(ValueError, match="'a' is not in list"):
        run.write_again("a", FILES)


def test_dropped_parts_are_in_manifest_and_journal(tmp_path: Path) -> None:
    with opened(tmp_path, others=["files"]) as run:
        fill(run)
        assert run.counts == {"in": 4, "kept": 4, "dropped": 0, "rows": 6}
    assert manifest_of(tmp_path)["dropped_parts"] == {"b": {"part 1": "too large"}}
    assert read_run(tmp_path, Row).dropped_parts == {"b": {"part 1": "too large"}}
    with opened(tmp_path, others=["files"]) as run:
        assert run.dropped_parts == {"b": {"part 1": "too large"}}


def test_killed_between_any_two_steps_a_run_with_files_ends_with_the_same_files(
    tmp_path: Path, stop_at: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [(os, "write"), (os, "fsync"), (os, "truncate"), (Path, "replace"), (Path, "mkdir"), (Path, "open")]

    def work(folder: Path) -> None:
        with opened(folder, others=["files"]) as run:
            fill(run)

    steps = stop_at(10**6, Killed(), changes)
    work(tmp_path / "whole")
    n_steps = len(steps)
    monkeypatch.undo()
    whole = results_of(tmp_path / "whole")
    assert n_steps > 40
    assert len(whole) == 2 + 4
    for allowed in range(n_steps):
        folder = tmp_path / str(allowed)
        stop_at(allowed, Killed(), changes)
        with pytest.raises(Killed):
            work(folder)
        monkeypatch.undo()
        work(folder)
        assert {name: data for name, data in results_of(folder).items() if not name.endswith(".tmp")} == whole


def test_files_that_cannot_be_written_are_an_error_that_says_what_is_safe(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.write("a", rows_of("a"), files={"files/a.bin": b"a"})
        before = (tmp_path / "table.csv").read_bytes(), (tmp_path / "progress.jsonl").read_bytes()
        (tmp_path / "files" / "b.bin").mkdir()
        with pytest.raises(RunError, match=r"b\.bin cannot be written: .*; 1 of 4 units are on disk, and the same"):
            run.write("b", rows_of("b"), files={"files/b.bin": b"b"})
        assert before == ((tmp_path / "table.csv").read_bytes(), (tmp_path / "progress.jsonl").read_bytes())
    (tmp_path / "files" / "b.bin").rmdir()
    with opened(tmp_path, others=["files"]) as run:
        fill(run)
        assert run.pending == []


def test_a_subfolder_that_cannot_be_created_is_an_error_that_says_what_is_safe(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        (tmp_path / "files").write_bytes(b"")
        with pytest.raises(RunError, match=r"files cannot be created: File exists; 0 of 4 units are on disk"):
            run.write("a", rows_of("a"), files=FILES)


@pytest.mark.parametrize(
    "line",
    [
        '{"unit": "nobody", "files": {"x": 1}}',
        '{"unit": "a", "files": {"x": -1}}',
        '{"unit": "a", "files": {"x": "1"}}',
        '{"unit": "a", "files": [1]}',
        '{"unit": ["a"], "files": {}}',
    ],
)
def test_a_journal_line_about_files_that_is_not_one_is_refused(tmp_path: Path, line: str) -> None:
    with opened(tmp_path, others=["files"]) as run:
        fill(run)
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match="line 5 is not a valid entry"), opened(tmp_path, others=["files"]):
        pass


def test_of_a_finished_unit_no_part_is_stored(tmp_path: Path) -> None:
    with opened(tmp_path, others=["files"]) as run:
        UnitParts(run.parts_for(["a"]), "a").keep({"1": 1})
        assert UnitParts(run.parts_for(["a"]), "a").get("1") == 1
        fill(run)
        UnitParts(run.parts_for(["a"]), "a").keep({"1": 1})
        assert UnitParts(run.parts_for(["a"]), "a").get("1") is None
        assert not (tmp_path / "unfinished.jsonl").exists()
