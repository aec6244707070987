"""Killed anywhere, or refused by a full disk, a run ends with the same table."""

import errno
import json
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interpret.errors import RunError
from interpret.storage.run_folder import read_table
from reference.small_runs import (
    UNITS,
    Killed,
    Row,
    Stop,
    assert_complete,
    assert_ends_like,
    contents,
    finish,
    manifest_of,
    opened,
    rows_of,
    work,
    worker,
)


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """No power is cut in this process, which opens a thousand runs; the order of syncs has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


# Killed


def cuts(old: bytes, new: bytes) -> Iterator[bytes]:
    """Every state of a file while ``new`` grows out of ``old``, byte by byte."""
    for size in range(len(old), len(new) + 1):
        yield new[:size]


def test_killed_at_any_byte_of_any_file_a_run_ends_with_the_same_table(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    folder = tmp_path / "run"
    states = [(b"", b"")]
    with opened(folder) as run:
        begun = (folder / "manifest.json").read_bytes()
        states.append(((folder / "table.csv").read_bytes(), b""))
        while run.pending:
            work(run, until=1)
            states.append(((folder / "table.csv").read_bytes(), (folder / "progress.jsonl").read_bytes()))
    assert len(states) == 2 + len(UNITS)
    killed = [
        state
        for (table, journal), (new_table, new_journal) in zip(states, states[1:], strict=False)
        for state in [
            *((cut, journal) for cut in cuts(table, new_table)),
            *((new_table, cut) for cut in cuts(journal, new_journal)),
        ]
    ]
    assert len(killed) > 300
    for table, journal in killed:
        (folder / "table.csv").write_bytes(table)
        (folder / "progress.jsonl").write_bytes(journal)
        (folder / "manifest.json").write_bytes(begun)
        assert_ends_like(folder, unbroken)


WRITES = [(os, "write"), (os, "fsync"), (Path, "mkdir"), (Path, "replace"), (Path, "write_bytes")]
CHANGES = [*WRITES, (os, "truncate")]


def test_killed_between_any_two_steps_a_run_ends_with_the_same_table(
    tmp_path: Path, unbroken: dict[str, bytes], stop_at: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = stop_at(10**6, Killed(), CHANGES)
    assert_ends_like(tmp_path / "whole", unbroken)
    assert len(steps) > 20
    monkeypatch.undo()
    for allowed in range(len(steps)):
        folder = tmp_path / str(allowed)
        stop_at(allowed, Killed(), CHANGES)
        with pytest.raises(Killed), opened(folder) as run:
            work(run)
        monkeypatch.undo()
        assert_ends_like(folder, unbroken)


def test_killed_while_continuing_after_a_kill_a_run_ends_with_the_same_table(
    tmp_path: Path, unbroken: dict[str, bytes], stop_at: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, choose, kills = tmp_path / "run", random.Random(0), 0
    while not (folder / "manifest.json").exists() or manifest_of(folder)["status"] != "complete":
        stop_at(choose.randrange(16), Killed(), CHANGES)
        try:
            with opened(folder) as run:
                work(run)
        except Killed:
            kills += 1
        monkeypatch.undo()
    assert kills > 3
    assert_complete(folder, unbroken)


def test_an_interrupted_write_leaves_nothing_of_its_unit(
    tmp_path: Path, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:3])
        raise KeyboardInterrupt

    with opened(tmp_path) as run:
        work(run, until=1)
        before, write = contents(tmp_path), os.write
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.write("b", rows_of("b"))
        monkeypatch.undo()
        assert contents(tmp_path) == before
        with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: this Run is closed"):
            run.write("b", rows_of("b"))
    assert_ends_like(tmp_path, unbroken)


def test_killed_while_taking_back_a_failed_unit_a_run_ends_with_the_same_table(
    tmp_path: Path, unbroken: dict[str, bytes], stop_at: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as run:
        work(run, until=1)
        stop_at(1, OSError(errno.EIO, "Input/output error"), [(os, "fsync")])  # the journal's, its line all written
        stop_at(1, Killed(), [(os, "truncate")])
        with pytest.raises(Killed):
            run.write("b", rows_of("b"))
        monkeypatch.undo()
    assert_ends_like(tmp_path, unbroken)


def test_each_step_is_on_the_disk_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def told(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(which: Any, *args: Any) -> Any:
            path = Path(f"/proc/self/fd/{which}").readlink() if isinstance(which, int) else which
            steps.append(f"{name} {path.name}")
            return real(which, *args)

        monkeypatch.setattr(owner, name, call)

    with opened(tmp_path, units=["a"]) as run:
        for owner, name in ((os, "write"), (os, "fsync"), (Path, "replace")):
            told(owner, name)
        work(run)
    assert steps == [
        *("write table.csv", "fsync table.csv", "write progress.jsonl", "fsync progress.jsonl"),
        *("write .manifest.json.tmp", "fsync .manifest.json.tmp", "replace .manifest.json.tmp"),
        f"fsync {tmp_path.name}",
    ]


def test_a_process_killed_again_and_again_ends_with_the_table_of_an_unbroken_one(tmp_path: Path) -> None:
    units, choose, named = 60, random.Random(1), []
    for after in (0, 1, 5, 9, 13):
        with worker(tmp_path / "killed", units, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"go\n" * (after + 3))
            process.stdin.flush()
            named += [process.stdout.readline().decode().strip() for _ in range(after)]
            # Then in one of three more units; the first time, perhaps before there is any.
            time.sleep(choose.random() * (0.004 if after else 0.08))
            process.kill()
            named += finish(process)[0]
            assert process.returncode == -signal.SIGKILL
    assert 28 <= len(named) < units
    there = [row.unit for row in read_table(tmp_path / "killed", Row)]
    assert there == [f"unit {number}" for number in range(len(there) // 40) for _ in range(40)]
    assert set(named) <= set(there), "a unit that was named as safe is lost"
    for folder in ("killed", "unbroken"):
        with worker(tmp_path / folder, units) as process:
            assert finish(process)[1] == ""
            assert process.returncode == 0
    killed, whole = contents(tmp_path / "killed"), contents(tmp_path / "unbroken")
    assert killed["table.csv"] == whole["table.csv"]
    assert killed["progress.jsonl"] == whole["progress.jsonl"]
    assert whole["table.csv"].count(b"\n") > units * 40


# Out of space


def test_a_process_that_may_write_no_more_keeps_what_is_safe_and_goes_on_later(tmp_path: Path) -> None:
    def at_most_10_000_bytes_a_file() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    with worker(tmp_path / "full", 20, preexec_fn=at_most_10_000_bytes_a_file) as process:
        stopped = finish(process)
    assert_stopped_full(tmp_path / "full", *stopped, "File too large")
    assert_goes_on(tmp_path)


def test_a_full_disk_keeps_what_is_safe_and_goes_on_later(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=32k tmpfs "$0/disk" || exit 77; "$@"; cp -r "$0/disk/full" "$0/full"'
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(tmp_path)]
    try:
        with worker(tmp_path / "disk" / "full", 20, before=namespace) as process:
            stopped = finish(process)
    except FileNotFoundError:
        pytest.skip("no unshare command to make a small disk with")
    if not (tmp_path / "full").exists():
        pytest.skip(f"this machine lets nobody make a small disk: {stopped[1]}")
    assert_stopped_full(tmp_path / "full", *stopped, "No space left on device", tmp_path / "disk" / "full")
    assert_goes_on(tmp_path)


def assert_stopped_full(folder: Path, named: list[str], error: str, reason: str, seen_as: Path | None = None) -> None:
    """Find all units that were named as safe, nothing else, and an error that says so."""
    safe, table = len(named), (seen_as or folder) / "table.csv"
    assert 0 < safe < 20
    assert error == (
        f"interpret.errors.RunError: {table}: cannot write unit 'unit {safe}': {reason}; "
        f"{safe} of 20 units are on disk, and the same command resumes the run"
    )
    assert [row.unit for row in read_table(folder, Row)] == [unit for unit in named for _ in range(40)]
    size = json.loads((folder / "progress.jsonl").read_text().splitlines()[-1])["size"]
    assert (folder / "table.csv").stat().st_size == size


def assert_goes_on(folder: Path) -> None:
    """Continue where there is space, and end like an unbroken run."""
    for name in ("full", "unbroken"):
        with worker(folder / name, 20) as process:
            assert finish(process)[1] == ""
    assert contents(folder / "full")["table.csv"] == contents(folder / "unbroken")["table.csv"]
    assert manifest_of(folder / "full")["counts"] == manifest_of(folder / "unbroken")["counts"]


def test_whatever_the_disk_refuses_is_a_run_error_and_the_run_can_go_on(
    tmp_path: Path, unbroken: dict[str, bytes], stop_at: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = stop_at(10**6, Killed(), WRITES)
    assert_ends_like(tmp_path / "whole", unbroken)
    monkeypatch.undo()
    for allowed in range(len(steps)):
        folder = tmp_path / str(allowed)
        stop_at(allowed, OSError(errno.ENOSPC, "No space left on device"), WRITES)
        with pytest.raises(RunError, match="No space left on device"), opened(folder) as run:
            work(run)
        monkeypatch.undo()
        assert_ends_like(folder, unbroken)


def test_a_failed_journal_line_takes_its_rows_back(
    tmp_path: Path, unbroken: dict[str, bytes], stop_at: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as run:
        work(run, until=1)
        before = contents(tmp_path)
        # The rows are written and synced; the line of the journal is not.
        stop_at(2, OSError(errno.EIO, "Input/output error"), WRITES)
        with pytest.raises(RunError) as caught:
            run.write("b", rows_of("b"))
        monkeypatch.undo()
        assert contents(tmp_path) == before
    assert str(caught.value) == (
        f"{tmp_path / 'progress.jsonl'}: cannot write unit 'b': Input/output error; "
        "1 of 4 units are on disk, and the same command resumes the run"
    )
    assert_ends_like(tmp_path, unbroken)


def test_the_callers_own_error_comes_through_and_its_run_goes_on(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    def interrupted(folder: Path) -> None:
        with opened(folder) as run:
            work(run, until=2)
            raise OSError("the caller's")

    with pytest.raises(OSError, match="^the caller's$"):
        interrupted(tmp_path)
    assert manifest_of(tmp_path)["counts"]["kept"] == 2
    assert_ends_like(tmp_path, unbroken)
