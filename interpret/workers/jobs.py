"""What a run does, apart from who does it: a job is cut into tasks, and a task gives the outcomes of some units.

A ``Job`` describes a run without its model and can be sent to another process. ``Job.open`` makes it an ``Analysis``,
which has the model in memory and does tasks. An ``Executor`` lets analyses do tasks and returns the outcomes in order:
``in_process.InProcess`` has one analysis in this process. ``runs.run_job`` writes the outcomes into the run folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.storage.outcomes import Outcome
from interpret.storage.parts import StoredParts
from interpret.work.loop import Work

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """What one analysis does at a time."""

    units: tuple[str, ...]
    """The units whose outcomes it gives, in order."""
    what: Any
    """Argument of ``Analysis.do``: small, and it can be pickled. It contains every number that must not depend on who
    does the task, such as the size of a batch."""


@dataclass(frozen=True)
class Finished:
    """A step that ends a unit."""

    unit: str
    outcome: Outcome


Step = Finished | None
"""What a progress bar counts: the end of a unit, or None for a step before its end."""


@dataclass(frozen=True)
class Settled:
    """What is decided once for all processes, because it depends on the model or the device."""

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The part that a run of several processes records; by default nothing."""
        return {}


class Analysis(ABC):
    """An analysis with its model in memory. Equal tasks give equal outcomes in every process."""

    def settle(self) -> Settled:
        """Return what is decided once for all processes, for ``Job.tasks``; by default nothing."""
        return Settled()

    def ask(self, question: Any) -> Any:
        """Answer a question of ``Job.tasks``, which it needs to cut its tasks; by default there are no questions."""
        raise NotImplementedError

    @abstractmethod
    def do(self, what: Any, parts: StoredParts) -> Iterator[Step]:
        """Do ``Task.what``, and yield its steps, with one ``Finished`` per unit of the task.

        Args:
            what: of the task.
            parts: stores what is done of a unit, and has what an interrupted run stored.
        """


class Executor(Protocol):
    """Lets analyses answer questions and do tasks."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines the numbers besides the job: the model."""

    @property
    def circumstances(self) -> Mapping[str, Any]:
        """What else a run records: versions, devices, workers."""

    def settled(self) -> Any:
        """Return the result of ``Analysis.settle``, which one analysis determines once."""

    def ask(self, questions: Iterable[Any]) -> Iterator[Any]:
        """Yield the answers to questions, in order."""

    def do(self, tasks: Iterable[Task], parts_for: Callable[[Sequence[str]], StoredParts]) -> Iterator[list[Step]]:
        """Do tasks, and yield their steps in order: all that are ready, at least one.

        Args:
            tasks: the tasks; several may be taken before the first is done.
            parts_for: returns the store for the parts of some units, as ``Run.parts_for``.
        """


class Job(Protocol):
    """A run without its model; it can be pickled."""

    @property
    def work(self) -> Work:
        """The words for messages."""

    @property
    def record_type(self) -> type:
        """The record type of the table."""

    @property
    def others(self) -> Sequence[str]:
        """Names of files and folders besides the table."""

    @property
    def units(self) -> Sequence[str]:
        """The names of all units, in order."""

    @property
    def lacking(self) -> Mapping[str, str]:
        """The first units, which cannot be processed -> reason."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything except the model that determines the numbers, as JSON values."""

    @property
    def circumstances(self) -> Mapping[str, Any]:
        """What else is recorded, as JSON values."""

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> Analysis:
        """Check what needs the model, and return the analysis.

        Args:
            model: a causal LM in evaluation mode.
            tokenizer: its tokenizer.
            say: receives messages about the progress.

        Raises:
            InputError: if the job does not fit the model.
            UnsupportedModelError: if the model is not of a supported family.
        """

    def tasks(self, executor: Executor, wanted: Collection[str]) -> Iterator[Task]:
        """Yield the tasks that give the wanted units, in the order of the units.

        A task may give units that are not wanted, if its numbers depend on them. Tasks do not depend on who does them.
        """

    def count(self, executor: Executor, units: Sequence[str]) -> int:
        """Return the number of steps that some units take, for the progress bar."""
