"""Run the tests with a case on a GPU in a process of their own, and collect their outcomes.

This module is also the plugin of pytest that writes the outcomes, one line each, so that those of a run that is cut off
are not lost.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.table import OutcomeRow

TOP = Path(__file__).parents[2]
MARK = "pytest.mark.gpu"
_FILE = "INTERPRET_GPU_OUTCOMES"
"""The environment variable with the file of the outcomes."""
_WORKER = "PYTEST_XDIST_WORKER"
"""The environment variable that workers of pytest-xdist have."""
_PROCESSES = 8
"""How many processes share a GPU at most; each needs half a GiB of its memory."""


def marked_files() -> list[Path]:
    """Return the files with tests that have the marker ``gpu``."""
    return [path for path in sorted((TOP / "tests").rglob("test_*.py")) if MARK in path.read_text("utf-8")]


def run_tests(files: Sequence[Path], seconds: float) -> list[OutcomeRow]:
    """Run the tests with the marker ``gpu`` in some files, for at most some seconds."""
    # Warnings are no errors there, because the packages may be other ones than those the tests were written with.
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", __name__, "-W", "default"]
    options += ["--continue-on-collection-errors"]
    if torch.cuda.is_available() and find_spec("xdist"):  # most of a test's time is the CPU's
        options += ["-n", str(min(_PROCESSES, os.cpu_count() or 1))]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    with TemporaryDirectory() as folder:
        lines = Path(folder) / "outcomes"
        lines.touch()
        # This may itself run in a test, in a worker of pytest-xdist.
        environment = {name: value for name, value in os.environ.items() if name != _WORKER} | {_FILE: str(lines)}
        try:
            done = subprocess.run(command, cwd=TOP, env=environment, timeout=seconds, capture_output=True, text=True)
            # 5: no test has the marker.
            ending = "" if done.returncode in (0, 1, 5) else (done.stdout + done.stderr)[-2000:]
        except subprocess.TimeoutExpired:
            ending = f"cut off after {seconds:.0f} s"
        outcomes = Counter(tuple(json.loads(line)) for line in lines.read_text("utf-8").splitlines())
    rows = [OutcomeRow(file, outcome, count, reason) for (file, outcome, reason), count in outcomes.items()]
    return rows + ([OutcomeRow("", "failed", 0, ending)] if ending else [])


def pytest_runtest_logreport(report: Any) -> None:
    """Write the outcome of a test; called by pytest for its set-up, its call and its end."""
    if report.when == "call" or not report.passed:
        _note(report, report.location[0], report.nodeid.partition("::")[2])


def pytest_collectreport(report: Any) -> None:
    """Write that a file was skipped, or could not be read; called by pytest for each file."""
    if not report.passed:
        _note(report, report.nodeid, "")


def _note(report: Any, file: str, test: str) -> None:
    if _WORKER in os.environ:  # the process that distributes the tests hears of it, too
        return
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = f"{test}: {crash.message[:500] if crash else str(report.longrepr)[-500:]}"
    with Path(os.environ[_FILE]).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps([Path(file).as_posix(), report.outcome, reason]) + "\n")
