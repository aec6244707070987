"""Measure what workers cost and gain: time between units, start, throughput, memory, bytes; and simulate 100 of them.

python -m benchmarks.bench_workers  (needs ray; about 8 minutes on two cores)

Throughput is that of ``interpret trace`` with three mediators on known facts, with the demo model: one process with all
cores, and one worker per core, in turn, both with opening the model. The simulation lets the real queue
(``workers.pool``) work on workers that take a given time for a unit, with the measured costs of a call and of writing.
"""

import argparse
import heapq
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import psutil
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import interpret
from interpret.models import Opening
from interpret.records import TraceCell
from interpret.storage.outcomes import Kept
from interpret.storage.parts import StoredParts
from interpret.tracing.mediators import DEFAULT_MEDIATORS
from interpret.work.loop import Work
from interpret.workers import Analysis, Executor, Finished, Task, Workers, run_job
from interpret.workers.crew import Came, Done, Event
from interpret.workers.jobs import Say, Step
from interpret.workers.pool import Pool
from interpret.workers.worker import Report


@dataclass(frozen=True)
class SleepJob:
    """A job whose units sleep and return some bytes."""

    n_units: int
    seconds: float
    n_bytes: int
    log: Path
    """Folder in which each worker writes when its units began and ended."""
    work: Work = Work("Sleeping", "slept", "units", failures=("not slept",))
    record_type: type = TraceCell
    others: Sequence[str] = ("files",)
    lacking: Mapping[str, str] = field(default_factory=dict)
    circumstances: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """Return what is recorded."""
        return {"command": "sleep", "seconds": self.seconds}

    @property
    def units(self) -> list[str]:
        """Return the names of the units."""
        return [f"unit_{number}" for number in range(self.n_units)]

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> "Sleeper":
        """Return what sleeps."""
        return Sleeper(self.seconds, self.n_bytes, self.log)

    def tasks(self, executor: Executor, wanted: Collection[str]) -> Iterator[Task]:
        """Yield a task per unit."""
        return (Task((name,), name) for name in self.units if name in wanted)

    def count(self, executor: Executor, units: Sequence[str]) -> int:
        """Return the number of units."""
        return len(units)


@dataclass(frozen=True)
class Sleeper(Analysis):
    """Sleeps once per unit."""

    seconds: float
    n_bytes: int
    log: Path

    def do(self, what: str, parts: StoredParts) -> Iterator[Step]:
        """Sleep, and return a file of some bytes."""
        began = time.perf_counter()
        time.sleep(self.seconds)
        with (self.log / str(os.getpid())).open("a") as file:
            file.write(f"{began} {time.perf_counter()}\n")
        yield Finished(what, Kept(b"", 0, {f"files/{what}": bytes(self.n_bytes)}))


class Watch:
    """Watches the memory of the workers of this machine inside a ``with`` block."""

    def __enter__(self) -> "Watch":
        """Start to look, once a second."""
        self.most: dict[str, float] = {"RSS": 0.0, "PSS": 0.0}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop to look."""
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(1.0):
            found = {"RSS": 0.0, "PSS": 0.0}
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                        full = process.memory_full_info()
                        found["RSS"] += full.rss / 1e9
                        found["PSS"] += full.pss / 1e9
            self.most = {kind: max(self.most[kind], size) for kind, size in found.items()}


def sleep(n_units: int, seconds: float, n_bytes: int, workers: int) -> tuple[float, list[float]]:
    """Let workers sleep; return the seconds of the run, and those between two units of a worker."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        log.mkdir()
        job, opening = SleepJob(n_units, seconds, n_bytes, log), Opening("demo", device="cpu")
        settings = Workers(workers, gpus_per_worker=0, cluster="auto")
        started = time.perf_counter()
        run_job(job, opening, None, Path(folder, "run"), workers=settings, progress=False)
        whole = time.perf_counter() - started
        between: list[float] = []
        for file in log.iterdir():
            units = [[float(word) for word in line.split()] for line in file.read_text().splitlines()]
            between += [after[0] - before[1] for before, after in pairwise(units)]
        return whole, between


def traced(facts: Path, workers: int, samples: int) -> tuple[float, pd.DataFrame, int]:
    """Trace facts with three mediators; return the seconds of the run, its table, and the bytes of its files."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        opening = Opening("demo", device="cpu")
        run = interpret.tracing.run(
            opening,
            None,
            facts,
            folder,
            settings=interpret.tracing.TraceSettings(samples=samples),
            mediators=DEFAULT_MEDIATORS,
            workers=workers,
            progress=False,
        )
        seconds = time.perf_counter() - started
        files = [path for path in Path(folder).rglob("*") if path.suffix in (".csv", ".npz", ".jsonl")]
        return seconds, run.to_frame(), sum(path.stat().st_size for path in files)


@dataclass
class Simulated:
    """A crew in simulated time: a call takes some time of a worker, and some of the driver."""

    size: int
    unit: float
    """Seconds that a worker needs for a unit."""
    driver: float
    """Seconds that the driver needs for a unit."""
    now: float = 0.0
    events: list[tuple[float, int, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Let the workers come."""
        report = Report({}, {}, "cpu", "host", 0)
        self.events = [(0.0, worker, Came(worker, report)) for worker in range(self.size)]

    def call(self, worker: int, name: str, what: Any) -> None:
        """Start a call."""
        self.now += self.driver
        done = Done(worker, [Finished(what, Kept(b"", 0))])
        heapq.heappush(self.events, (self.now + self.unit, worker, done))

    def wait(self, seconds: float) -> list[Event]:
        """Return all that has happened, or what happens next."""
        first, *_ = self.events
        self.now = max(self.now, first[0])
        found = []
        while self.events and self.events[0][0] <= self.now:
            found.append(heapq.heappop(self.events)[2])
        return found

    def dismiss(self, worker: int) -> None:
        """End a worker; this does not happen here."""


def simulated(workers: int, n_units: int, unit: float, driver: float) -> float:
    """Return how busy workers are, from 0 to 1, in a run of the real queue.

    Args:
        workers: number of workers.
        n_units: number of units.
        unit: seconds of a unit.
        driver: seconds of the driver per unit, for the call, its result and writing it.
    """
    crew = Simulated(workers, unit, driver)
    pool = Pool(crew, "", 1e9, lambda line: None, lambda: crew.now)
    tasks = (Task((str(number),), str(number)) for number in range(n_units))
    for _ in pool.do(tasks, lambda units: StoredParts()):
        pass
    return n_units * unit / workers / crew.now


def measure_traces(n_facts: int, samples: int, rounds: int, cores: int) -> None:
    """Print the times of traces in one process and with workers, in turn, and the memory of the workers."""
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder, "facts.json")
        facts.write_text(json.dumps(known_facts(n_facts)))
        found: dict[str, list[float]] = {}
        tables: list[pd.DataFrame] = []
        for _ in range(rounds):
            for name, workers in (("one process", 1), (f"{cores} workers", cores)):
                with Watch() as watch:
                    seconds, table, n_bytes = traced(facts, workers, samples)
                found.setdefault(name, []).append(seconds)
                tables.append(table)
                memory = ", ".join(f"{size:.2f} GB {kind}" for kind, size in watch.most.items())
                print(f"{name}: {seconds:.1f} s; all workers at most {memory}")
    # Not the bytes: a worker has one thread here, and sums may differ in the last digits with another number.
    apart = max(float((table["restored"] - tables[0]["restored"]).abs().max()) for table in tables)
    assert apart < 1e-5, f"probabilities differ by {apart}"
    one, many = (median(times) for times in found.values())
    print(f"{n_facts} facts: {cores} workers are {one / many:.2f} times one process with {cores} threads;", end=" ")
    print(f"largest difference {apart:.1e}; {n_bytes / n_facts:,.0f} bytes per fact")


def measure_units(cores: int) -> float:
    """Print the start of a worker and the time between units; return the latter for units of 240 kB, in seconds."""
    print(f"start of a worker, Ray running: {sleep(1, 0.0, 0, 1)[0]:.1f} s")
    costs = {}
    for n_bytes in (0, 240_000, 1_500_000):
        _, between = sleep(200, 0.0, n_bytes, 1)
        costs[n_bytes] = median(between)
        print(f"between two units that return {n_bytes:,} bytes: {1000 * median(between):.1f} ms (median)")
    _, between = sleep(20 * cores, 1.0, 240_000, cores)
    share = f"{1000 * median(between):.1f} ms, {median(between):.1%} of a unit"
    print(f"between two units of 1 s, {cores} workers: {share}")
    return costs[240_000]


def main() -> None:
    """Measure all, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=12, help="number of known facts to trace; 0 to leave this out")
    parser.add_argument("--samples", type=int, default=2, help="number of noise samples")
    parser.add_argument("--rounds", type=int, default=1, help="number of times that each way is measured, in turn")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no message about processes that were started
    import ray

    cores = os.cpu_count() or 1
    if options.facts:
        measure_traces(options.facts, options.samples, options.rounds, cores)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=2**28)
    driver = measure_units(cores)
    ray.shutdown()
    print("simulated, 1,209 units of 5 s: share of time in which workers work, as measured, and with 40 ms more (NFS):")
    for workers in (1, 2, 8, 32, 100, 400):
        shares = [simulated(workers, 1209, 5.0, driver + nfs) for nfs in (0.0, 0.04)]
        print(f"  {workers} workers: {shares[0]:.0%}, {shares[1]:.0%}")


def known_facts(count: int) -> list[dict[str, str]]:
    """Return the first facts of the examples that the demo model knows."""
    model, tokenizer = interpret.load("demo", device="cpu")
    answered = interpret.facts.known(model, tokenizer, interpret.load_facts(interpret.example("facts")).facts)
    found = [one.fact for one in answered if one.correct][:count]
    return [{"prompt": one.prompt, "subject": one.subject, "attribute": one.attribute} for one in found]


if __name__ == "__main__":
    main()
