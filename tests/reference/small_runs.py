"""Runs of a few units, in this process or in processes that can be killed, compared with an uninterrupted run."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from interpret.errors import RunError
from interpret.storage.opening import open_run
from interpret.storage.run import Run


@dataclass(frozen=True)
class Row:
    unit: str
    text: str
    scores: list[float]


UNITS = ["a", "b", "c", "d"]
IDENTITY = {"model": {"name": "tiny", "sha256": "00ff"}, "layers": [1, 2], "seed": 7}


def rows_of(unit: str) -> list[Row]:
    """Return the rows of a unit: 0 to 3 rows, with texts that need quoting in CSV."""
    return [Row(unit, f'"{unit}",\n é{number}', [number / 3]) for number in range(ord(unit) % 4)]


def opened(folder: Path, **changes: Any) -> AbstractContextManager[Run]:
    """Open a run over ``UNITS``; ``changes`` replace arguments of ``open_run``."""
    values = {"identity": IDENTITY, "circumstances": {"device": "cpu"}, "units": UNITS, **changes}
    return open_run(folder, Row, **values)


def work(run: Run, until: int | None = None) -> None:
    """Process the pending units, at most ``until`` of them; unit ``c`` is dropped."""
    for unit in run.pending[:until]:
        if unit == "c":
            run.drop(unit, "no answer")
        else:
            run.write(unit, rows_of(unit))


def refused(folder: Path, message: str, **changes: Any) -> None:
    """Opening says exactly ``message``, and touches nothing."""
    before = contents(folder) if folder.is_dir() else None
    with pytest.raises(RunError) as caught, opened(folder, **changes):
        pytest.fail("the run was opened")
    assert str(caught.value) == message
    assert (contents(folder) if folder.is_dir() else None) == before


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of each file but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".lock"}


def unbroken_run(folder: Path) -> dict[str, bytes]:
    """Return the files of an uninterrupted run."""
    with opened(folder) as run:
        work(run)
    files = contents(folder)
    assert set(files) == {"table.csv", "manifest.json", "progress.jsonl"}
    assert files["table.csv"].count(b"\n") > 5
    return files


def assert_ends_like(folder: Path, unbroken: dict[str, bytes]) -> None:
    """Resume a run to its end; assert that table, journal and counts are those of an uninterrupted run."""
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


_WORKER = """
import sys
from dataclasses import dataclass
from interpret.storage.opening import open_run

@dataclass(frozen=True)
class Row:
    unit: str
    text: str
    scores: list[float]

units = [f"unit {number}" for number in range(int(sys.argv[2]))]
with open_run(sys.argv[1], Row, identity={"seed": 7}, circumstances={}, units=units) as run:
    for unit in run.pending:
        sys.stdin.readline()
        run.write(unit, [Row(unit, "\\n, \\xe9" * 9, [number / 7]) for number in range(40)])
        print(unit, flush=True)
"""


def worker(folder: Path, units: int, before: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that writes a run of ``units`` units of 40 rows and prints each unit when it is on disk.

    If ``stdin`` is a pipe, the process reads a line from it before each unit.
    """
    command = [*before, sys.executable, "-c", _WORKER, str(folder), str(units)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, **options})


def finish(process: subprocess.Popen[bytes]) -> tuple[list[str], str]:
    """Wait for a worker; return the units it printed and the last line of its error output."""
    out, error = process.communicate(timeout=600)
    return out.decode().splitlines(), (error.decode().strip().splitlines() or [""])[-1]


class Killed(BaseException):
    """Ends the process as far as the code under test can tell: nothing reaches the disk any more."""


Stop = Callable[[int, BaseException, list[tuple[Any, str]]], list[str]]
"""(number of allowed changes of the disk, the error after them, the functions that change it) -> what was done."""
