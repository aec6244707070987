"""Workers as actors of Ray, on this machine or on a cluster. The only module that imports ray.

An actor that died is replaced by this process and not by Ray (``max_restarts=0``): Ray does not tell when an actor dies
while its constructor opens the model, and every death is to be told and counted. It also makes a failed call mean one
thing: this actor is gone, or is ended now. A call is sent only after the actor's ``back`` has answered, and only once.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from interpret.errors import ModelError, RunError, one_line
from interpret.models.opening import Opening
from interpret.workers.crew import Came, Died, Done, Event, Lost
from interpret.workers.jobs import Job
from interpret.workers.places import Place, place_of
from interpret.workers.settings import Workers
from interpret.workers.worker import Setup, Unusable, Worker, on_device, software

_STARTS = 3
"""Number of times in a row that a worker may die before it has opened the model."""
_OBJECT_STORE = 256 * 2**20
"""Bytes of shared memory for results that are on their way, on this machine; more are written to disk by Ray."""


@contextmanager
def ray_crew(workers: Workers, job: Job, opening: Opening, output: Path | str) -> Iterator["RayCrew"]:
    """Start workers, and end them with the ``with`` block.

    Args:
        workers: how many, and where.
        job: what they will do.
        opening: how they open the model.
        output: the run folder, for which only one driver may be on a cluster.

    Raises:
        ModelError: if the cluster cannot be reached.
        RunError: if another driver of the cluster writes the run folder.
    """
    with ExitStack() as stack:
        stack.enter_context(_connected(workers))
        if workers.cluster is not None:
            stack.enter_context(_lease(output))
        place = place_of(workers, opening, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        # The last digits may depend on the number of threads, so a smaller number that was chosen is kept.
        chosen = os.environ.get("OMP_NUM_THREADS", "")
        threads = min(place.cpus, int(chosen)) if chosen.isdecimal() and int(chosen) else place.cpus
        setup = Setup(
            cloudpickle.dumps(job),
            on_device(opening, place.gpus),
            workers.imports,
            software(workers.imports),
            threads,
            str(Path.cwd()),
        )
        crew = RayCrew(workers.count, setup, place)
        stack.callback(crew.close)
        yield crew


@contextmanager
def _connected(workers: Workers) -> Iterator[None]:
    """Connect this process to Ray, or start Ray on this machine; a connection that exists is used and kept."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if workers.cluster is None:
            with _silent_tokenizers():
                ray.init(
                    "local",
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
        else:
            ray.init(workers.cluster, **quiet)
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if workers.cluster is None else f"at {workers.cluster!r}"
        raise ModelError(f"workers: Ray cannot be used {where}: {one_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_tokenizers() -> Iterator[None]:
    """Keep the library tokenizers from printing that a process which has used it starts others."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = before or "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


class _Lease:
    """An actor whose name says that a run folder is being written; it ends with the driver."""

    def holds(self) -> bool:
        """Return True, once the actor is there."""
        return True


@contextmanager
def _lease(output: Path | str) -> Iterator[None]:
    """Keep other drivers of the cluster from writing a folder; its lock alone does not, on a network file system."""
    folder = Path(output).resolve()
    name = f"llm-interpret {sha256(os.fsencode(folder)).hexdigest()[:16]}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(_Lease).options(name=name, namespace="llm-interpret", scheduling_strategy=here)
    try:
        holder = actor.remote()  # on this machine, so that it is lost only with the driver
        ray.get(holder.holds.remote())
    except ValueError:  # the name is taken
        raise RunError(f"{output} is being written by another driver of the cluster; wait for it or stop it") from None
    except RayError as error:
        raise RunError(f"{output}: cannot be reserved on the cluster: {one_line(error)}") from error
    try:
        yield
    finally:
        with suppress(RayError):
            ray.kill(holder)


class RayCrew:
    """A crew of actors."""

    def __init__(self, size: int, setup: Setup, place: Place) -> None:
        """Start the actors; their setup is sent once, and each machine keeps it."""
        self.size = size
        self._actor = ray.remote(num_cpus=place.cpus, num_gpus=place.gpus, max_restarts=0, max_task_retries=0)(Worker)
        self._setup = setup
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        """What is awaited of each actor: a call, or ``back``."""
        self._starting: dict[int, int] = {}
        """Worker that has not opened the model -> number of times that it was started."""
        for worker in range(size):
            self._start(worker)

    def _start(self, worker: int) -> None:
        self._starting[worker] = self._starting.get(worker, 0) + 1
        self._actors[worker] = self._actor.remote(self._setup)
        self._calls[self._actors[worker].back.remote()] = worker

    def call(self, worker: int, name: str, what: Any) -> None:
        """Give a worker a call."""
        self._calls[self._actors[worker].call.remote(name, what)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """Return what has happened, as soon as something has; nothing after some seconds."""
        awaited = list(self._calls)
        if not awaited:
            time.sleep(min(seconds, 1))
            return []
        ready, _ = ray.wait(awaited, num_returns=1, timeout=seconds)
        more, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
        return [self._event(self._calls.pop(call), call) for call in dict.fromkeys([*ready, *more])]

    def _event(self, worker: int, call: Any) -> Event:
        starting = worker in self._starting
        try:
            result = ray.get(call)
        except RayError as error:
            self._end(worker)  # it may only be out of reach, or its result lost: there must not be two of it
            last = str(error).strip().splitlines()[-1:] if isinstance(error, RayActorError) else [type(error).__name__]
            return self._died(worker, one_line(" ".join(last)))
        if not starting:
            return Done(worker, result)
        if isinstance(result, Unusable):
            self._end(worker)
            return Lost(worker, result.why, result.error)
        del self._starting[worker]
        return Came(worker, result)

    def _died(self, worker: int, why: str) -> Event:
        if self._starting.get(worker, 0) >= _STARTS:
            return Lost(worker, f"it died {_STARTS} times while it opened the model: {why}")
        self._start(worker)
        return Died(worker, why)

    def dismiss(self, worker: int) -> None:
        """End a worker, without a replacement."""
        self._end(worker)

    def _end(self, worker: int) -> None:
        with suppress(RayError):
            ray.kill(self._actors[worker])

    def close(self) -> None:
        """End all workers."""
        for worker in self._actors:
            self._end(worker)
