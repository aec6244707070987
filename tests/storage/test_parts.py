"""Parts of unfinished units: what survives a kill, what is ignored, and when the file is deleted."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interpret.errors import RunError
from interpret.storage.parts import PARTS, StoredParts
from reference.small_runs import UNITS, assert_ends_like, contents, opened, rows_of, unbroken_run, work

VALUE = {"text": "é\n\ud800", "p": [0.1, 1e-300, float("inf")], "none": None}


def test_parts_are_there_when_the_run_is_opened_again_and_gone_when_their_unit_is_done(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert (run.n_parts, run.parts.get("a", "1")) == (0, None)
        run.parts.keep({("a", "1"): VALUE, ("b", "1"): 2})
        run.parts.keep({("a", "2"): [3]})
    with opened(tmp_path) as run:
        assert [run.parts.get("a", "1"), run.parts.get("a", "2"), run.parts.get("b", "1")] == [VALUE, [3], 2]
        assert run.n_parts == 3
        work(run, until=1)
        assert run.n_parts == 1
        assert (tmp_path / PARTS).exists()
        work(run, until=1)
        assert not (tmp_path / PARTS).exists()
    assert_ends_like(tmp_path, unbroken_run(tmp_path.with_name("whole")))


def test_cut_at_any_byte_the_whole_lines_are_there_and_the_rest_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / PARTS
    parts = StoredParts(path)
    for number in range(3):
        parts.keep({("a", str(number)): number})
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        parts = StoredParts(path, ["a"])
        assert len(parts) == sum(end <= size for end in ends)
        parts.keep({("a", str(number)): number for number in range(len(parts), 3)})
        assert path.read_bytes() == whole


@pytest.mark.parametrize("change", [lambda data: data.replace(b"0.5", b"0.6"), lambda data: b"nonsense\n" + data])
def test_a_changed_line_and_all_after_it_are_ignored(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / PARTS
    StoredParts(path).keep({("a", "1"): 0.5, ("a", "2"): 1})
    path.write_bytes(change(path.read_bytes()))
    assert len(StoredParts(path, ["a"])) == 0


@pytest.mark.parametrize("line", [b"[" * 200_000, b'["a"]', b'{"a": 1}', b"\xff", b'["a", "b", "c", 1]'])
def test_lines_of_something_else_are_ignored(tmp_path: Path, line: bytes) -> None:
    (tmp_path / PARTS).write_bytes(line + b"\n")
    assert len(StoredParts(tmp_path / PARTS, ["a"])) == 0


def test_parts_of_finished_units_are_deleted_when_the_run_is_opened(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        work(run, until=1)
    StoredParts(tmp_path / PARTS).keep({("a", "1"): 1})
    with opened(tmp_path) as run:
        assert run.n_parts == 0
    assert not (tmp_path / PARTS).exists()


def test_parts_that_cannot_be_written_are_an_error_and_those_before_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    parts, write = StoredParts(tmp_path / PARTS), os.write
    parts.keep({("a", "1"): 1})
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match="unfinished.jsonl: cannot be written: No space left on device$"):
        parts.keep({("a", "2"): 2})
    monkeypatch.undo()
    parts.keep({("a", "2"): 2})
    assert len(StoredParts(tmp_path / PARTS, ["a"])) == 2


class Killed(BaseException):
    """Ends the process as far as the code under test can tell."""


def test_killed_between_any_two_steps_a_run_with_parts_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(folder: Path) -> list[str]:
        """Work in parts; return the parts that were computed."""
        computed = []
        with opened(folder) as run:
            while run.pending:
                unit = run.pending[0]
                for part in "12":
                    if run.parts.get(unit, part) is None:
                        computed.append(unit + part)
                        run.parts.keep({(unit, part): part})
                run.write(unit, rows_of(unit))
        return computed

    steps: list[int] = []

    def stop_after(allowed: int) -> None:
        steps.clear()
        for owner, name in ((os, "write"), (os, "fsync"), (os, "truncate"), (Path, "unlink"), (Path, "touch")):
            real = getattr(owner, name)

            def counted(*args: Any, real: Any = real, **kwargs: Any) -> Any:
                if len(steps) >= allowed:
                    raise Killed
                steps.append(1)
                return real(*args, **kwargs)

            monkeypatch.setattr(owner, name, counted)

    stop_after(10**6)
    assert len(filled(tmp_path / "whole")) == 2 * len(UNITS)
    whole, n_steps = contents(tmp_path / "whole"), len(steps)
    assert n_steps > 40
    assert PARTS not in whole
    for allowed in range(n_steps):
        folder = tmp_path / str(allowed)
        stop_after(allowed)
        with pytest.raises(Killed):
            filled(folder)
        monkeypatch.undo()
        done = contents(folder)
        n_done = 2 * done.get("progress.jsonl", b"").count(b"\n")
        n_kept = done.get(PARTS, b"").count(b"\n")
        assert len(filled(folder)) >= 2 * len(UNITS) - n_done - n_kept
        ended = contents(folder)
        assert {name: ended[name] for name in ("table.csv", "progress.jsonl")} == {
            name: whole[name] for name in ("table.csv", "progress.jsonl")
        }
        assert PARTS not in ended
