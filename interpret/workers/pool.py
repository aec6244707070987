"""The executor of many workers: a queue of calls, whose results are returned in order.

A worker has one call at a time. If it dies meanwhile, the call goes to the front of the queue for the next free worker.
A call whose workers died ``STRIKES`` times is given up, but only if other calls succeeded meanwhile: then the cause
is the call. Otherwise the cause may be the machines, and the run stops without a loss. All this does not depend on what
runs the workers, which is a ``Crew``.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interpret.errors import InterpretError, ModelError, RunError
from interpret.storage.outcomes import Dropped
from interpret.storage.parts import StoredParts
from interpret.workers.crew import Came, Crew, Died, Done, Event, Lost
from interpret.workers.jobs import Finished, Say, Step, Task
from interpret.workers.worker import ASK, DO, SETTLE, Report

STRIKES = 3
"""Number of workers that may die at a call."""
WINDOW = 4
"""Number of calls per worker that are taken before the first of them has returned."""
_LONGEST_WAIT = 60.0
"""Seconds; events end a wait at once."""


@dataclass(eq=False)
class _Call:
    """A call of a worker, and its result."""

    name: str
    what: Any
    units: tuple[str, ...] = ()
    strikes: int = 0
    others_done: int = 0
    """Number of calls that had returned at the first strike."""
    done: bool = False
    result: Any = None

    def settle(self, result: Any) -> None:
        """Store the result; an error is raised when it is its turn."""
        self.done, self.result = True, result


@dataclass
class Pool:
    """Lets the workers of a crew do tasks."""

    crew: Crew
    failed: str
    """First words of the reason for a unit that is dropped."""
    start_timeout: float
    """Seconds to wait for the first worker, and for another one when all have died."""
    say: Say
    clock: Callable[[], float] = time.monotonic
    _queue: deque[_Call] = field(default_factory=deque)
    _idle: deque[int] = field(default_factory=deque)
    _at: dict[int, _Call] = field(default_factory=dict)
    _lost: set[int] = field(default_factory=set)
    _n_done: int = 0
    _first: Report | None = None
    _last_words: Lost | Died | None = None
    _settled: _Call | None = None

    def __post_init__(self) -> None:
        """Start to count the time."""
        self._started = self._alive = self.clock()
        self._few_told = False
        self._workers: dict[str, dict[str, Any]] = {}
        self._recorded: dict[str, Any] = {}

    def wait_for_first(self) -> Report:
        """Wait for the first worker, and return its report.

        Raises:
            ModelError: if no worker can open the model, or none has within ``start_timeout``.
            InterpretError: the error of a worker that cannot open the job.
        """
        while self._first is None:
            self._pump()
        return self._first

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identity of the model and the extensions, which is equal for all workers."""
        return self.wait_for_first().identity

    @property
    def circumstances(self) -> Mapping[str, Any]:
        """Versions and device of the first worker; host, device and number of calls of each; what was settled.

        The last two are complete at the end.
        """
        first, more = self.wait_for_first(), {"workers": self._workers, "settled": self._recorded}
        return {"versions": first.versions, "device": first.device, **more}

    def settled(self) -> Any:
        """Return the result of ``Analysis.settle`` of one worker."""
        if self._settled is None:
            self._settled = _Call(SETTLE, None)
            self._queue.append(self._settled)
        while not self._settled.done:
            self._pump()
        settled = _returned(self._settled)
        self._recorded.update(settled.recorded)
        return settled

    def ask(self, questions: Iterable[Any]) -> Iterator[Any]:
        """Yield the answers to questions, in order."""
        for results in self._in_order(_Call(ASK, question) for question in questions):
            yield from map(_returned, results)

    def do(self, tasks: Iterable[Task], parts_for: Callable[[Sequence[str]], StoredParts]) -> Iterator[list[Step]]:
        """Do tasks, and yield the steps of all that are ready, in order; workers store no parts."""
        for results in self._in_order(_Call(DO, task.what, task.units) for task in tasks):
            sound = [call for call in results if not isinstance(call.result, InterpretError)]
            if steps := [step for call in sound for step in call.result]:
                yield steps
            for call in results[len(sound) :]:
                _returned(call)

    def _in_order(self, calls: Iterator[_Call]) -> Iterator[list[_Call]]:
        """Yield calls that have returned, in order: all that are ready, up to the first that failed."""
        window: deque[_Call] = deque()
        while True:
            while len(window) < WINDOW * self.crew.size and (call := next(calls, None)) is not None:
                window.append(call)
                self._queue.append(call)
            if not window:
                return
            while not window[0].done:
                self._pump()
            ready: list[_Call] = []
            while window and window[0].done and not (ready and isinstance(ready[-1].result, InterpretError)):
                ready.append(window.popleft())
            yield ready

    def _pump(self) -> None:
        """Give calls to idle workers, wait until something happens, and note it."""
        self._hand_out()
        for event in self.crew.wait(self._patience()):
            self._note(event)
        self._hand_out()
        self._check_time()

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            worker, call = self._idle.popleft(), self._queue.popleft()
            self._at[worker] = call
            self.crew.call(worker, call.name, call.what)

    def _note(self, event: Event) -> None:
        if isinstance(event, Came):
            self._came(event)
        elif isinstance(event, Done):
            self._n_done += 1
            self._workers[str(event.worker + 1)]["calls"] += 1
            self._at.pop(event.worker).settle(event.result)
            self._idle.append(event.worker)
        else:
            self._gone(event)

    def _came(self, event: Came) -> None:
        worker, report = event.worker, event.report
        first = self._first or report
        if difference := report.difference(first):
            self.say(f"{_name(worker)} on {report.host} is refused: its {difference}")
            self.crew.dismiss(worker)
            self._lost.add(worker)
            return
        self._first = first
        self.say(f"{_name(worker)} of {self.crew.size} is ready: {report.host}, process {report.pid}, {report.device}")
        self._workers.setdefault(str(worker + 1), {"host": report.host, "device": report.device, "calls": 0})
        self._idle.append(worker)

    def _gone(self, event: Died | Lost) -> None:
        """Note that a worker is gone, and put its call back into the queue."""
        worker = event.worker
        self._last_words = event
        if worker in self._idle:
            self._idle.remove(worker)
        if isinstance(event, Lost):
            self._lost.add(worker)
            self.say(f"{_name(worker)} is gone: {event.why}")
        else:
            self.say(f"{_name(worker)} died and is started again: {event.why}")
        call = self._at.pop(worker, None)
        if call is not None:
            self._strike(call, event.why)

    def _strike(self, call: _Call, why: str) -> None:
        call.strikes += 1
        if call.strikes == 1:
            call.others_done = self._n_done
            self._queue.appendleft(call)
        elif call.strikes < STRIKES:
            self._queue.append(call)  # behind the others, so that they show whether the machines are sound
        else:
            self._give_up(call, why)

    def _give_up(self, call: _Call, why: str) -> None:
        """End a call that workers die of: drop its units if other calls succeeded meanwhile, else stop the run."""
        alone = not self._queue and not self._at
        others = self._n_done - (0 if alone else call.others_done)
        what = f"the worker died {STRIKES} times while it was done ({why}); it may need more memory than a worker has"
        if call.name == DO and others:
            call.settle([Finished(unit, Dropped(f"{self.failed}: {what}")) for unit in call.units])
        else:
            doing = f"unit {call.units[0]!r}" if call.units else "the start of the run"
            raise RunError(f"{doing}: {what}, and nothing else succeeded meanwhile; the same command resumes the run")

    def _patience(self) -> float:
        """Return the seconds after which ``_check_time`` has to look again."""
        return min(_LONGEST_WAIT, max(0.05, self.start_timeout - (self.clock() - self._alive)))

    def _check_time(self) -> None:
        """Raise an error if no worker is left, or none has come in time; tell once if some are missing."""
        now = self.clock()
        if self._idle or self._at:
            self._alive = now
        elif len(self._lost) == self.crew.size or now - self._alive >= self.start_timeout:
            self._stop()
        missing = self.crew.size - len(self._lost) - len(self._idle) - len(self._at)
        if not self._few_told and missing and self._first and now - self._started >= self.start_timeout:
            self._few_told = True
            here = self.crew.size - missing - len(self._lost)
            waited = f"{self.start_timeout:g} s"
            self.say(f"{here} of {self.crew.size} workers are ready after {waited}; the run goes on with these")

    def _stop(self) -> None:
        last = self._last_words
        if isinstance(last, Lost) and isinstance(last.error, InterpretError):
            raise last.error
        waited = f"no worker was ready within {self.start_timeout:g} s"
        why = last.why if last else f"{waited}: there may be no place for one; see 'ray status' for a cluster"
        if self._first is None:
            raise ModelError(f"no worker could start: {why}")
        raise RunError(f"no worker is left: {why}; finished units are on disk, and the same command resumes the run")


def _returned(call: _Call) -> Any:
    """Return the result of a call.

    Raises:
        InterpretError: if it is one.
    """
    if isinstance(call.result, InterpretError):
        raise call.result
    return call.result


def _name(worker: int) -> str:
    return f"worker {worker + 1}"
