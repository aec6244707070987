"""Runs with real workers in tests: what they wait for, what is killed, and that no process is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 120.0
"""Seconds after which something that was waited for is a failure; on a quiet machine all take a few."""


def until(there: Callable[[], Any]) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + PATIENCE
    while not (found := there()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def _heed_ctrl_c() -> None:
    """Let a driver heed Ctrl-C also if the tests run in the background of a script, where shells ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def gone(processes: list[psutil.Process]) -> None:
    """Assert that processes end by themselves; those that do not are killed."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    left = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    names = [process.name() for process in left]
    for process in left:
        process.kill()
    assert names == []


def offspring(pid: int) -> list[psutil.Process]:
    """Return the processes that a process has started, and those that they have started."""
    return psutil.Process(pid).children(recursive=True)


@dataclass
class Machines:
    """A Ray cluster on loopback; each machine has place for one worker."""

    cluster: Any
    added: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, **options: Any) -> Any:
        """Add a machine."""
        node = self.cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, **options)
        self.added.append(node)
        return node

    def kill(self, node: Any) -> None:
        """Kill a machine with all that runs on it."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.added.remove(node)


@dataclass
class Gates:
    """A run of the probe ``gate``, whose prompts wait for cues."""

    folder: Path
    """Of the cues, the prompts and the run."""
    extension: Path
    model: Path
    drivers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def examples(self, *categories: str) -> Path:
        """Write a prompt file; prompts are named by their category and a number."""
        prompts = [
            {"prompt": f"Prompt {number} of {category}", "category": category, "raw": True}
            for number, category in enumerate(categories)
        ]
        path = self.folder / "examples.json"
        path.write_text(json.dumps(prompts))
        return path

    def command(self, *words: object, output: Path | None = None) -> list[str]:
        """Return the command line of a run over the prompts."""
        line = ["probe", "gate", "--import", self.extension, "--examples", self.folder / "examples.json"]
        line += ["--option", f"folder={self.folder}", "--model", self.model, "--device", "cpu", *words]
        return [str(word) for word in [*line, "--output", output or self.run]]

    def start(self, *words: object) -> "subprocess.Popen[bytes]":
        """Start a driver in a process group of its own."""
        line = [sys.executable, "-m", "interpret", *self.command(*words)]
        with (self.folder / f"said {len(self.drivers)}").open("w") as said:
            driver = subprocess.Popen(
                line, cwd=self.folder, stdout=said, stderr=said, start_new_session=True, preexec_fn=_heed_ctrl_c
            )
        self.drivers.append(driver)
        return driver

    @property
    def said(self) -> str:
        """What the last driver has printed."""
        return " ".join((self.folder / f"said {len(self.drivers) - 1}").read_text().split())

    def ended(self, code: int = 0) -> str:
        """Wait until the last driver has ended, assert its exit code, and return what it has printed."""
        found = self.drivers[-1].wait(timeout=PATIENCE)
        assert found == code, self.said
        return self.said

    def go(self, name: str = "") -> None:
        """Let a prompt go on; by default all."""
        (self.folder / f"go {name}".strip()).touch()

    def workers_at(self, name: str) -> list[int]:
        """Return the process ids of the workers that have started a prompt."""
        return [int(file.name.split()[-1]) for file in self.folder.glob(f"started {name} *")]

    def kill_worker_at(self, name: str, nth: int = 1) -> None:
        """Kill the worker that is the nth to have started a prompt, as soon as it has."""
        until(lambda: len(self.workers_at(name)) >= nth)
        (alive,) = [pid for pid in self.workers_at(name) if psutil.pid_exists(pid)]
        os.kill(alive, signal.SIGKILL)


def results(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a run folder, without its manifest and locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "manifest.json"}
