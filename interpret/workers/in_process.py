"""The executor that is used by default: one analysis in this process, which does one task after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.models.identity import model_circumstances, model_identity
from interpret.storage.parts import StoredParts
from interpret.workers.jobs import Job, Say, Step, Task


class InProcess:
    """Does tasks in this process, step by step."""

    def __init__(self, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
        """Open the analysis; arguments and errors are those of ``Job.open``."""
        self._analysis = job.open(model, tokenizer, say)
        self.identity = model_identity(model)
        self.circumstances = model_circumstances(model)

    def settled(self) -> Any:
        """Return the result of ``Analysis.settle``."""
        return self._settled

    @cached_property
    def _settled(self) -> Any:
        return self._analysis.settle()

    def ask(self, questions: Iterable[Any]) -> Iterator[Any]:
        """Yield the answer to each question when it is needed."""
        return map(self._analysis.ask, questions)

    def do(self, tasks: Iterable[Task], parts_for: Callable[[Sequence[str]], StoredParts]) -> Iterator[list[Step]]:
        """Do each task, and yield each step."""
        for task in tasks:
            for step in self._analysis.do(task.what, parts_for(task.units)):
                yield [step]
