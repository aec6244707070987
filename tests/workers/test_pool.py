"""The queue of many workers: order, retries, strikes and drops, with a crew in this process that fails on cue."""

import pickle
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from interpret.errors import InputError, ModelError, RunError
from interpret.storage.outcomes import Dropped, Kept
from interpret.storage.parts import StoredParts
from interpret.workers.crew import Came, Died, Done, Lost
from interpret.workers.jobs import Finished, Settled, Task
from interpret.workers.pool import STRIKES, WINDOW, Pool
from interpret.workers.worker import Report

REPORT = Report({"weights": "sha256 12"}, {"torch": "2", "platform": "a"}, "cpu", "host", 1)
KILL = "a signal"
SETTLED = Settled()


def outcome_of(unit):
    return Kept(f"{unit}\r\n".encode(), 1, {f"{unit}.npz": b"x"})


@dataclass
class Cues:
    """A crew whose workers return, die or do not come as they are told."""

    size: int = 2
    reports: dict = field(default_factory=dict)
    """Worker -> report, or an event in place of its coming."""
    deadly: dict = field(default_factory=dict)
    """Unit -> number of workers that die of it."""
    results: dict = field(default_factory=dict)
    """Unit -> result of its call."""
    slow: set = field(default_factory=set)
    """Workers that return only when nobody else has anything to do."""
    now: float = 0.0
    given: list = field(default_factory=list)
    dismissed: list = field(default_factory=list)
    events: deque = field(default_factory=deque)
    late: deque = field(default_factory=deque)

    def __post_init__(self):
        for worker in range(self.size):
            event = self.reports.get(worker, REPORT)
            if event is not None:
                self.events.append(Came(worker, event) if isinstance(event, Report) else event)

    def call(self, worker, name, what):
        pickle.dumps(what)
        self.given.append((worker, name, what))
        if self.deadly.get(what, 0) > 0:
            self.deadly[what] -= 1
            self.events.append(Died(worker, KILL))
            self.events.append(Came(worker, REPORT))
            return
        usual = {"do": [Finished(what, outcome_of(what))], "ask": f"ask {what}", "settle": SETTLED}[name]
        result = self.results.get(what, usual)
        (self.late if worker in self.slow else self.events).append(Done(worker, result))

    def wait(self, seconds):
        waiting = self.events or self.late
        if not waiting:
            self.now += seconds
            return []
        return [waiting.popleft()]

    def dismiss(self, worker):
        self.dismissed.append(worker)


@dataclass
class Told:
    """A pool on such a crew, and what it says."""

    crew: Cues
    said: list = field(default_factory=list)

    @property
    def pool(self):
        return Pool(self.crew, "not done", 10.0, self.said.append, lambda: self.crew.now)


def tasks_of(units, meanwhile=lambda: None):
    for unit in units:
        meanwhile()
        yield Task((unit,), unit)


def do(pool, tasks, done=None, meanwhile=lambda: None):
    """The steps of tasks, which are also put into ``done`` as they come."""
    done = [] if done is None else done
    for steps in pool.do(tasks if isinstance(tasks, Iterator) else tasks_of(tasks), lambda units: StoredParts()):
        done += steps
        meanwhile()
    return done


UNITS = [f"unit {number}" for number in range(20)]
WHOLE = [Finished(unit, outcome_of(unit)) for unit in UNITS]


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_steps_are_in_order_whatever_the_number_of_workers(size):
    assert do(Told(Cues(size)).pool, UNITS) == WHOLE


@pytest.mark.parametrize("slow", [{0}, {1}, {0, 1, 2}])
def test_steps_are_in_order_when_a_worker_is_slow(slow):
    told = Told(Cues(4, slow=slow))
    assert do(told.pool, UNITS) == WHOLE
    assert {worker for worker, *_ in told.crew.given} == {0, 1, 2, 3}


def test_a_slow_unit_does_not_let_the_others_run_ahead_without_bound():
    taken = []
    crew = Cues(2, slow={0})
    first = next(Told(crew).pool.do(tasks_of(UNITS, lambda: taken.append(1)), lambda units: StoredParts()))
    assert len(taken) == WINDOW * 2
    assert first == WHOLE[: WINDOW * 2]  # all that are ready are given at once


@pytest.mark.parametrize("deaths", range(1, STRIKES))
@pytest.mark.parametrize("unit", [UNITS[0], UNITS[7], UNITS[-1]])
@pytest.mark.parametrize("size", [1, 3])
def test_a_unit_whose_worker_died_is_done_by_another(deaths, unit, size):
    told = Told(Cues(size, deadly={unit: deaths}))
    assert do(told.pool, UNITS) == WHOLE
    assert [what for *_, what in told.crew.given].count(unit) == deaths + 1
    assert sum("died and is started again: a signal" in line for line in told.said) == deaths


def test_after_one_death_a_unit_is_the_next():
    told = Told(Cues(1, deadly={UNITS[0]: 1}))
    do(told.pool, UNITS)
    assert [what for *_, what in told.crew.given][:3] == [UNITS[0], UNITS[0], UNITS[1]]


@pytest.mark.parametrize("unit", [UNITS[0], UNITS[7], UNITS[-1]])
@pytest.mark.parametrize("size", [1, 3])
def test_a_unit_that_always_kills_its_worker_is_dropped_with_the_reason(unit, size):
    crew = Cues(size, deadly={unit: 99})
    steps = do(Told(crew).pool, UNITS)
    assert [what for *_, what in crew.given].count(unit) == STRIKES
    assert [step for step in steps if step.unit != unit] == [step for step in WHOLE if step.unit != unit]
    (dropped,) = (step.outcome for step in steps if step.unit == unit)
    assert isinstance(dropped, Dropped)
    assert dropped.reason.startswith("not done: the worker died 3 times while it was done (a signal)")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_outage_drops_nothing(size):
    units = UNITS[:9]
    told = Told(Cues(size, deadly=dict.fromkeys(units[3:], 99)))
    done = []
    with pytest.raises(RunError, match="nothing else succeeded meanwhile"):
        do(told.pool, units, done)
    assert done == WHOLE[:3]


def test_one_unit_alone_that_kills_its_worker_stops_the_run():
    with pytest.raises(RunError, match="unit 'unit 0': the worker died 3 times"):
        do(Told(Cues(2, deadly={UNITS[0]: 99})).pool, UNITS[:1])


def test_an_error_stops_the_run_after_the_units_before_it():
    told, done = Told(Cues(3, results={UNITS[4]: RunError("KeyError: 'x'")})), []
    with pytest.raises(RunError, match="KeyError: 'x'"):
        do(told.pool, UNITS, done)
    assert done == WHOLE[:4]


def test_questions_are_answered_in_order_between_tasks():
    told = Told(Cues(3, slow={1}))
    pool = told.pool

    def tasks():
        for number, answer in enumerate(pool.ask(UNITS)):
            assert answer == f"ask {UNITS[number]}"
            yield Task((UNITS[number],), UNITS[number])

    assert do(pool, tasks()) == WHOLE
    assert pool.settled() is pool.settled() is SETTLED
    assert [name for _, name, _ in told.crew.given].count("settle") == 1


OTHERS = {
    "weights": (replace(REPORT, identity={"weights": "sha256 34"}), "its weights is 'sha256 34', not 'sha256 12'"),
    "extension": (replace(REPORT, identity={**REPORT.identity, "imports": {"a": "b"}}), "its imports is {'a': 'b'}, n"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_worker_that_would_give_other_numbers_is_refused_by_name(other):
    report, why = OTHERS[other]
    told = Told(Cues(3, reports={1: report}))
    assert do(told.pool, UNITS) == WHOLE
    assert told.crew.dismissed == [1]
    assert 1 not in {worker for worker, *_ in told.crew.given}
    assert any(line.startswith(f"worker 2 on host is refused: {why}") for line in told.said)


def test_a_worker_on_another_system_is_taken():
    told = Told(Cues(2, reports={1: replace(REPORT, versions={"torch": "2", "platform": "b"})}))
    assert do(told.pool, UNITS) == WHOLE
    assert told.crew.dismissed == []


def test_fewer_workers_than_asked_for_do_the_run_and_it_is_told():
    crew = Cues(3, reports={1: None, 2: None})
    told = Told(crew)

    def later():
        crew.now += 4.0

    assert do(told.pool, tasks_of(UNITS, later)) == WHOLE
    assert told.said.count("1 of 3 workers are ready after 10 s; the run goes on with these") == 1


def test_without_any_worker_the_run_does_not_start():
    with pytest.raises(ModelError, match=r"no worker could start: no worker was ready within 10 s"):
        Told(Cues(2, reports={0: None, 1: None})).pool.wait_for_first()
    error = InputError("this job does not fit")
    with pytest.raises(InputError, match="this job does not fit"):
        Told(Cues(2, reports={0: Lost(0, "x", error), 1: Lost(1, "x", error)})).pool.wait_for_first()
    crew = Cues(2, reports={0: Lost(0, "cannot open"), 1: Lost(1, "cannot open the model 'm'")})
    with pytest.raises(ModelError, match="no worker could start: cannot open the model 'm'"):
        Told(crew).pool.wait_for_first()
    assert crew.now == 0


def test_when_all_workers_are_gone_the_run_stops_and_loses_nothing():
    crew, done = Cues(2), []

    def flood():
        crew.events.clear()
        crew.events.extend([Lost(0, "a flood"), Lost(1, "a flood")])

    with pytest.raises(RunError, match="no worker is left: a flood; finished units are on disk, and the same command"):
        do(Told(crew).pool, UNITS, done, flood)
    assert done == WHOLE[: len(done)]
    assert 0 < len(done) < len(UNITS)


def test_a_run_records_what_each_worker_did():
    pool = Told(Cues(2)).pool
    do(pool, UNITS)
    found = pool.circumstances["workers"]
    assert sum(one["calls"] for one in found.values()) == len(UNITS)
    assert found["1"] == {"host": "host", "device": "cpu", "calls": found["1"]["calls"]}
