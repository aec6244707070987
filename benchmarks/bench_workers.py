"""Measure what workers cost and gain: overhead of a unit, start, throughput, memory, bytes; and simulate 100 of them.

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
from pathlib import Path
from statistics import median
from typing import Any

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
        return Sleeper(self.seconds, self.n_bytes)

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

    def do(self, what: str, parts: StoredParts) -> Iterator[Step]:
        """Sleep, and return a file of some bytes."""
        time.sleep(self.seconds)
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


def seconds_of_run(job: SleepJob, workers: int) -> float:
    """Return the seconds of a run whose workers start first."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run_job(
            job,
            Opening("demo", device="cpu"),
            None,
            folder,
            workers=Workers(workers, gpus_per_worker=0, cluster="auto"),
            progress=False,
        )
        return time.perf_counter() - started


def overhead(workers: int, seconds: float, n_bytes: int, n_units: int) -> float:
    """Return the seconds per unit beyond its sleep: from two runs, so that the start of the workers cancels out."""
    few, many = (seconds_of_run(SleepJob(count * n_units, seconds, n_bytes), workers) for count in (1, 2))
    return (many - few) * workers / n_units - seconds


def traced(facts: Path, workers: int, samples: int) -> tuple[float, dict[str, bytes]]:
    """Trace facts with three mediators; return the seconds of the run and the bytes of its table and grids."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        opening = Opening("demo", device="cpu")
        interpret.tracing.run(
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
        return seconds, {path.name: path.read_bytes() for path in files}


@dataclass
class Simulated:
    """A crew in simulated time: a call takes some time of a worker, and some of the driver."""

    size: int
    unit: float
    """Seconds that a worker needs for a unit."""
    call_cost: float
    """Seconds that the driver needs for a call and its result."""
    now: float = 0.0
    events: list[tuple[float, int, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Let the workers come."""
        report = Report({}, {}, "cpu", "host", 0)
        self.events = [(0.0, worker, Came(worker, report)) for worker in range(self.size)]

    def call(self, worker: int, name: str, what: Any) -> None:
        """Start a call."""
        self.now += self.call_cost
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


def simulated(workers: int, n_units: int, unit: float, call_cost: float, flush: float, file: float) -> float:
    """Return how busy workers are, from 0 to 1, in a run of the real queue.

    Args:
        workers: number of workers.
        n_units: number of units.
        unit: seconds of a unit.
        call_cost: seconds of the driver per call.
        flush: seconds to flush table and journal, once for all units that are ready.
        file: seconds to write the files of a unit.
    """
    crew = Simulated(workers, unit, call_cost)
    pool = Pool(crew, "", 1e9, lambda line: None, lambda: crew.now)
    tasks = (Task((str(number),), str(number)) for number in range(n_units))
    for steps in pool.do(tasks, lambda units: StoredParts()):
        crew.now += flush + file * len(steps)
    return n_units * unit / workers / crew.now


def main() -> None:
    """Measure all, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=12, help="Number of known facts to trace.")
    parser.add_argument("--samples", type=int, default=2, help="Number of noise samples.")
    parser.add_argument("--rounds", type=int, default=1, help="Number of times that each way is measured, in turn.")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no message about processes that were started
    import ray

    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder, "facts.json")
        known = known_facts(options.facts)
        facts.write_text(json.dumps(known))
        found: dict[str, list[float]] = {}
        outputs = []
        for _ in range(options.rounds):
            for name, workers in (("one process", 1), (f"{cores} workers", cores)):
                with Watch() as watch:
                    seconds, files = traced(facts, workers, options.samples)
                found.setdefault(name, []).append(seconds)
                outputs.append(files)
                memory = ", ".join(f"{size:.2f} GB {kind}" for kind, size in watch.most.items())
                print(f"{name}: {seconds:.1f} s; all workers at most {memory}")
        print(f"same bytes: {all(files == outputs[0] for files in outputs)}")
        one, many = (median(times) for times in found.values())
        print(f"{len(known)} facts: {cores} workers are {one / many:.2f} times one process with {cores} threads")
        print(f"bytes of a fact: {sum(map(len, outputs[0].values())) / len(known):,.0f}")
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=2**28)
    started = time.perf_counter()
    seconds_of_run(SleepJob(1, 0.0, 0), 1)
    print(f"start of a worker, Ray running: {time.perf_counter() - started:.1f} s")
    costs = {n_bytes: overhead(1, 0.0, n_bytes, 200) for n_bytes in (0, 240_000, 1_500_000)}
    for n_bytes, cost in costs.items():
        print(f"overhead of a unit of {n_bytes:,} bytes, with writing: {1000 * cost:.1f} ms")
    whole = overhead(cores, 1.0, 240_000, 10)
    print(f"overhead of a unit of 1 s, {cores} workers: {100 * whole:.1f}%")
    ray.shutdown()
    print("simulated, 1,209 units of 5 s; how busy the workers are, with files on a local disk and on NFS (40 ms):")
    for workers in (1, 2, 8, 32, 100, 400):
        shares = [simulated(workers, 1209, 5.0, 0.002, flush, file) for flush, file in ((0.01, 0.005), (0.02, 0.02))]
        print(f"  {workers} workers: {shares[0]:.0%}, {shares[1]:.0%}")


def known_facts(count: int) -> list[dict[str, str]]:
    """Return the first facts of the examples that the demo model knows."""
    model, tokenizer = interpret.load("demo", device="cpu")
    answered = interpret.facts.known(model, tokenizer, interpret.load_facts(interpret.example("facts")).facts)
    found = [one.fact for one in answered if one.correct][:count]
    return [{"prompt": one.prompt, "subject": one.subject, "attribute": one.attribute} for one in found]


if __name__ == "__main__":
    main()
