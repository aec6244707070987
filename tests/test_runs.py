"""Run directories: killed anywhere, refused by a full disk or opened twice, a run ends with the same table."""

import errno
import fcntl
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import interpret
from interpret.errors import RunError
from interpret.records import Interpretation, csv_header, to_csv
from interpret.runs import Run, open_run, read_table, read_units


@dataclass(frozen=True)
class Row:
    unit: str
    text: str
    scores: list[float]


UNITS = ["a", "b", "c", "d"]
IDENTITY = {"model": {"name": "tiny", "sha256": "00ff"}, "layers": [1, 2], "seed": 7}
WHAT_TO_DO = "give another --output folder, or delete this one"


def rows_of(unit: str) -> list[Row]:
    """What the work on a unit yields: 0 to 3 rows, awkward for CSV."""
    return [Row(unit, f'"{unit}",\n é{number}', [number / 3]) for number in range(ord(unit) % 4)]


def opened(folder: Path, **changes: Any) -> AbstractContextManager[Run]:
    """Open a run over UNITS."""
    values = {"identity": IDENTITY, "circumstances": {"device": "cpu"}, "units": UNITS, **changes}
    return open_run(folder, Row, **values)


def work(run: Run, until: int | None = None) -> None:
    """Do what is pending; ``c`` cannot be used."""
    for unit in run.pending[:until]:
        if unit == "c":
            run.drop(unit, "no answer")
        else:
            run.write(unit, rows_of(unit))


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """No power is cut in this process, which opens a thousand runs; the order of syncs has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    with opened(folder) as run:
        work(run)
    files = contents(folder)
    assert set(files) == {"table.csv", "manifest.json", "progress.jsonl"}
    assert files["table.csv"].count(b"\n") > 5
    return files


def assert_ends_like(folder: Path, unbroken: dict[str, bytes]) -> None:
    """Continue a run to its end, and find table, journal and counts as if nothing had disturbed it."""
    with opened(folder) as run:
        work(run)
    assert_complete(folder, unbroken)


def assert_complete(folder: Path, unbroken: dict[str, bytes]) -> None:
    files, wanted = contents(folder), json.loads(unbroken["manifest.json"])
    assert set(files) == set(unbroken)
    assert files["table.csv"] == unbroken["table.csv"]
    assert files["progress.jsonl"] == unbroken["progress.jsonl"]
    manifest = json.loads(files["manifest.json"])
    for key in ("identity", "counts", "dropped", "status", "format"):
        assert manifest[key] == wanted[key]


# What a run leaves behind


def test_table_is_header_and_rows_in_order(unbroken: dict[str, bytes]) -> None:
    rows = [row for unit in "abd" for row in rows_of(unit)]
    assert unbroken["table.csv"] == csv_header(Row) + to_csv(rows)


def test_manifest_carries_identity_circumstances_counts_and_times(unbroken: dict[str, bytes]) -> None:
    manifest = json.loads(unbroken["manifest.json"])
    assert manifest["identity"] == IDENTITY
    assert manifest["circumstances"] == {"device": "cpu"}
    assert manifest["counts"] == {"in": 4, "kept": 3, "dropped": 1, "rows": 3}
    assert manifest["dropped"] == {"c": "no answer"}
    assert manifest["status"] == "complete"
    assert manifest["continuations"] == []
    times = [manifest["started"], manifest["finished"]]
    assert times == sorted(times)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", time) for time in times)


def test_manifest_is_strict_readable_json_with_sorted_keys(unbroken: dict[str, bytes]) -> None:
    text = unbroken["manifest.json"].decode()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_manifest_says_running_until_all_units_are_done(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert manifest_of(tmp_path)["status"] == "running"
        work(run, until=2)
    manifest = manifest_of(tmp_path)
    assert (manifest["status"], manifest["finished"]) == ("running", None)
    assert manifest["counts"] == {"in": 4, "kept": 2, "dropped": 0, "rows": 3}


def test_run_tells_what_is_done_and_what_is_left(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert (run.finished, run.pending) == ([], UNITS)
        work(run, until=3)
        assert (run.finished, run.pending) == (["a", "b", "c"], ["d"])
        assert run.dropped == {"c": "no answer"}
        assert run.counts == {"in": 4, "kept": 2, "dropped": 1, "rows": 3}


def test_a_unit_may_have_no_rows_and_is_still_kept(tmp_path: Path) -> None:
    assert rows_of("d") == []
    with opened(tmp_path, units=["d"]) as run:
        work(run)
        assert run.counts == {"in": 1, "kept": 1, "dropped": 0, "rows": 0}


def test_a_run_of_no_units_is_complete(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "folder", units=[]) as run:
        assert run.pending == []
    assert manifest_of(tmp_path / "new" / "folder")["status"] == "complete"
    assert read_table(tmp_path / "new" / "folder", Row) == []


def test_opening_a_complete_run_again_changes_no_byte(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        work(run)
    before = contents(tmp_path)
    with opened(tmp_path, circumstances={"device": "other"}) as run:
        assert run.pending == []
    assert contents(tmp_path) == before


def test_a_continued_run_records_each_circumstance(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        work(run, until=1)
    with opened(tmp_path, circumstances={"device": "cuda"}) as run:
        work(run)
    manifest = manifest_of(tmp_path)
    (again,) = manifest["continuations"]
    assert manifest["circumstances"] == {"device": "cpu"}
    assert (again["circumstances"], again["after_units"]) == ({"device": "cuda"}, 1)


def test_a_run_may_grow_by_units_at_its_end(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    with opened(tmp_path, units=UNITS[:2]) as run:
        work(run)
    assert manifest_of(tmp_path)["status"] == "complete"
    assert_ends_like(tmp_path, unbroken)


def test_identity_is_compared_as_json(tmp_path: Path) -> None:
    with opened(tmp_path, identity={"layers": (1, 2), "nested": {"b": 1, "a": None}}):
        pass
    with opened(tmp_path, identity={"nested": {"a": None, "b": 1}, "layers": [1, 2]}) as run:
        assert run.pending == UNITS


def test_odd_text_in_names_and_identity_survives(tmp_path: Path) -> None:
    odd = {"units": ["\ud83d", 'quote"\n', "\u2028"], "identity": {"prompt": "é\ud83d\n"}}
    with opened(tmp_path, **odd) as run:
        run.drop("\ud83d", "reason\n\ud83d")
    with opened(tmp_path, **odd) as run:
        assert run.pending == odd["units"][1:]
        assert run.dropped == {"\ud83d": "reason\n\ud83d"}


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


class Killed(BaseException):
    """Ends the process as far as the code under test can tell: nothing reaches the disk any more."""


Stop = Callable[..., list[str]]
WRITES = [(os, "write"), (os, "fsync"), (Path, "mkdir"), (Path, "replace"), (Path, "write_bytes")]
CHANGES = [*WRITES, (os, "truncate")]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Let the process do ``allowed`` things to the disk, then none; returns what was done, as it happens."""

    def arm(allowed: int, error: BaseException, changes: list[tuple[Any, str]]) -> list[str]:
        done: list[str] = []
        for owner, name in changes:
            real = getattr(owner, name)

            def counted(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
                if len(done) >= allowed:
                    raise error
                done.append(name)
                return real(*args, **kwargs)

            monkeypatch.setattr(owner, name, counted)
        return done

    return arm


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
        with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))} is closed: nothing more can be written"):
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


# A process of its own, that loads these modules without the package's heavy imports.
WORKER = """
import sys, types
package = types.ModuleType("interpret")
package.__path__ = [sys.argv[1]]
sys.modules["interpret"] = package
from dataclasses import dataclass
from interpret.runs import open_run

@dataclass(frozen=True)
class Row:
    unit: str
    text: str
    scores: list[float]

units = [f"unit {number}" for number in range(int(sys.argv[3]))]
with open_run(sys.argv[2], Row, identity={"seed": 7}, circumstances={}, units=units) as run:
    for unit in run.pending:
        sys.stdin.readline()
        run.write(unit, [Row(unit, "\\n, é" * 9, [number / 7]) for number in range(40)])
        print(unit, flush=True)
"""


def worker(folder: Path, units: int, before: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that writes a run of ``units`` units, 40 rows each, naming each when it is safe.

    Given a pipe as ``stdin``, it waits for a line there before each unit.
    """
    command = [*before, sys.executable, "-c", WORKER, interpret.__path__[0], str(folder), str(units)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, **options})


def finish(process: subprocess.Popen[bytes]) -> tuple[list[str], str]:
    """Wait for a worker; return the units it named and its last line of error."""
    out, error = process.communicate(timeout=60)
    return out.decode().splitlines(), (error.decode().strip().splitlines() or [""])[-1]


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
        f"{safe} of 20 units are safe, and the same command continues from there"
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
        "1 of 4 units are safe, and the same command continues from there"
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


# Refused


def refused(folder: Path, message: str, **changes: Any) -> None:
    """Opening says exactly ``message``, and touches nothing."""
    before = contents(folder) if folder.is_dir() else None
    with pytest.raises(RunError) as caught, opened(folder, **changes):
        pytest.fail("the run was opened")
    assert str(caught.value) == message
    assert (contents(folder) if folder.is_dir() else None) == before


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
        f"{half} holds another run:\n"
        '  dtype: absent there, "float32" here\n'
        "  layers: [1, 2] there, [1] here\n"
        '  model.sha256: "00ff" there, "00fe" here\n'
        "  seed: 7 there, absent here\n" + WHAT_TO_DO,
        identity={"model": {"name": "tiny", "sha256": "00fe"}, "layers": [1], "dtype": "float32"},
    )


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (["a", "x", "c", "d"], "its unit 1 is 'b', here 'x'"),
        (["b", "a", "c", "d"], "its unit 0 is 'a', here 'b'"),
        (["a"], "its unit 1 is 'b', here None"),
    ],
)
def test_other_units_are_refused(half: Path, units: list[str], message: str) -> None:
    refused(half, f"{half} holds another run: {message}; {WHAT_TO_DO}", units=units)


def test_a_unit_listed_twice_is_refused(tmp_path: Path) -> None:
    message = "the unit 'a' is listed twice; every unit of a run needs a name of its own"
    refused(tmp_path / "new", message, units=["a", "b", "a"])
    assert not (tmp_path / "new").exists()


def test_a_table_without_manifest_is_refused(half: Path) -> None:
    (half / "manifest.json").unlink()
    refused(half, f"{half} has a table.csv but no manifest.json, so nobody knows whose it is; {WHAT_TO_DO}")


def test_a_manifest_without_journal_is_refused(half: Path) -> None:
    (half / "progress.jsonl").unlink()
    refused(half, f"{half} has a manifest.json but no progress.jsonl, so it cannot be continued; {WHAT_TO_DO}")


def test_a_folder_of_other_files_is_used_beside_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with opened(tmp_path) as run:
        work(run)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["{}", "[]", "{", "", '{"format": "llm-interpret run, format 2"}'])
def test_a_manifest_of_something_else_is_refused(half: Path, text: str) -> None:
    (half / "manifest.json").write_text(text)
    refused(half, f"{half / 'manifest.json'} is not the manifest of a run, or of a newer version; {WHAT_TO_DO}")


@pytest.mark.parametrize("line", ["{}", "nonsense", '["a"]', '{"unit": "a"}'])
def test_a_journal_line_of_something_else_is_refused(half: Path, line: str) -> None:
    lines = (half / "progress.jsonl").read_text().splitlines(keepends=True)
    (half / "progress.jsonl").write_text("".join([lines[0], line + "\n", *lines[1:]]))
    refused(half, f"{half / 'progress.jsonl'}: line 2 was not written by a run; {WHAT_TO_DO}")


def test_a_journal_that_lost_lines_is_refused(half: Path) -> None:
    (half / "progress.jsonl").write_bytes(b"")
    refused(half, f"{half / 'progress.jsonl'} has lost lines since manifest.json counted them; {WHAT_TO_DO}")


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
    refused(half, f"{half / 'table.csv'} was changed after unit {unit!r} was written to it; {WHAT_TO_DO}")


@pytest.mark.parametrize("done", [0, 2])
def test_a_table_with_another_header_is_refused(tmp_path: Path, done: int) -> None:
    with opened(tmp_path) as run:
        work(run, until=done)
    edit(tmp_path, lambda table: b"U" + table[1:])
    refused(tmp_path, f"{tmp_path / 'table.csv'}: its first line is not that of this version's table; {WHAT_TO_DO}")


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
    with (tmp_path / "progress.jsonl").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left = [link for link in Path("/proc/self/fd").iterdir() if in_folder(link, tmp_path)]
    assert len(left) == 1, "a descriptor was left open"


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


# Mistakes of the code that writes


def test_units_out_of_turn_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        with pytest.raises(ValueError, match="^unit 'b' is out of turn; next is 'a'$"):
            run.write("b", rows_of("b"))
        work(run)
        with pytest.raises(ValueError, match="^unit 'a' is out of turn; next is None$"):
            run.drop("a", "again")


def test_a_closed_run_takes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        pass
    with pytest.raises(ValueError, match="is closed: nothing more can be written through this Run$"):
        run.write("a", rows_of("a"))


def test_a_record_of_another_type_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as run, pytest.raises(TypeError, match="^unit 'a': this run holds Row, not 'a row'$"):
        run.write("a", ["a row"])


def test_work_that_fails_half_way_through_a_unit_writes_nothing_of_it(tmp_path: Path) -> None:
    def failing() -> Iterator[Row]:
        yield from rows_of("b")
        raise ZeroDivisionError

    with opened(tmp_path) as run:
        before = contents(tmp_path)
        with pytest.raises(ZeroDivisionError):
            run.write("a", failing())
        assert contents(tmp_path) == before
        assert run.pending == UNITS


@pytest.mark.parametrize("which", ["identity", "circumstances"])
def test_numbers_that_are_no_json_are_refused_before_anything_is_written(tmp_path: Path, which: str) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"), opened(tmp_path, **{which: {"x": float("nan")}}):
        pytest.fail("the run was opened")
    assert all(content == b"" for content in contents(tmp_path).values())


# Reading


def test_a_table_is_read_while_it_is_written_whole_units_only(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert read_table(tmp_path, Row) == []
        work(run, until=2)
        with (tmp_path / "table.csv").open("ab") as file:
            file.write(b'half,"a row')
        for place in (tmp_path, str(tmp_path), tmp_path / "table.csv"):
            assert read_table(place, Row) == rows_of("a") + rows_of("b")


def test_units_are_read_one_by_one_while_the_run_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert list(read_units(tmp_path, Row)) == []
        work(run)
        with (tmp_path / "table.csv").open("ab") as file:
            file.write(b'half,"a row')
        assert list(read_units(tmp_path, Row)) == [rows_of("a"), rows_of("b")], "c is dropped, d has no rows"


def test_units_that_cannot_be_read_name_the_table(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"table\.csv: cannot be read: No such file or directory$"):
        list(read_units(tmp_path, Row))
    with opened(tmp_path) as run:
        work(run)
    with pytest.raises(RunError, match=r"table\.csv is no table of Interpretation$"):
        list(read_units(tmp_path, Interpretation))


def test_a_table_on_its_own_is_read_whole(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    (tmp_path / "mine.csv").write_bytes(unbroken["table.csv"])
    (tmp_path / "progress.jsonl").write_bytes(b"")
    assert read_table(tmp_path / "mine.csv", Row) == [row for unit in "abd" for row in rows_of(unit)]


def test_reading_what_is_not_there_names_it(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "table.csv"):
        with pytest.raises(RunError) as caught:
            read_table(place, Row)
        assert str(caught.value) == f"{tmp_path / 'table.csv'}: cannot be read: No such file or directory"


def test_reading_another_kind_of_table_names_its_columns(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    (tmp_path / "mine.csv").write_bytes(unbroken["table.csv"])
    columns = r"row 0: its columns are \['unit', 'text', 'scores'\], those of Interpretation are \['name', .*'kind'\]"
    with pytest.raises(RunError, match=f"^{re.escape(str(tmp_path / 'mine.csv'))}: {columns}$"):
        read_table(tmp_path / "mine.csv", Interpretation)


def test_reading_a_damaged_cell_names_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(csv_header(Row) + b"a,b,[1]\na,b,[1\n")
    with pytest.raises(RunError) as caught:
        read_table(tmp_path / "mine.csv", Row)
    assert str(caught.value) == f"{tmp_path / 'mine.csv'}: row 2: column 'scores' holds list[float], not '[1'"
