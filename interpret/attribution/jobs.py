"""Attribute prompts as units of a run: the job, and what a worker does for each prompt."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.attribution._attribute import attributions
from interpret.attribution.methods.registry import How
from interpret.attribution.parts import TextParts
from interpret.attribution.plan import Plan
from interpret.attribution.questions import Question, inputs_of, of_one_prompt, questions
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.files import compressed
from interpret.attribution.rows import token_scores
from interpret.attribution.run_files import FILES, file_name
from interpret.attribution.run_options import RunOptions
from interpret.attribution.run_plan import default_function, plan_run, read_pairs
from interpret.attribution.steps.functions import attributed_function
from interpret.attribution.targets import Alignment, Inputs, texts_of
from interpret.errors import InputError, ModelError
from interpret.records import TokenScore
from interpret.storage.outcomes import Dropped, Kept
from interpret.storage.parts import StoredParts, UnitParts
from interpret.work.inputs import PromptList
from interpret.work.loop import Work
from interpret.workers.jobs import Analysis, Executor, Finished, Say, Step, Task

NOT_ATTRIBUTED = "not attributed"
ATTRIBUTING = Work("Attributing", "attributed", "prompts", failures=(NOT_ATTRIBUTED,))


@dataclass(frozen=True)
class Reduction:
    """How the scores of a prompt are aggregated; see ``Attribution.aggregate``."""

    how: How | None = None
    """None: as the method does by default."""
    normalize: bool = False
    subwords: bool = False


@dataclass(frozen=True)
class AttributionJob:
    """Prompts to attribute, one unit per prompt."""

    command: ClassVar[str] = "attribute"
    """The command in the identity of the run."""
    words: RunOptions
    """The options, checked."""
    found: PromptList
    """The prompts."""
    options: Mapping[str, Any]
    """Options of the method and the functions."""
    batch_size: int
    """Number of points or masked texts in a batch."""
    reduction: Reduction
    """How the scores are aggregated."""
    single: bool
    """Whether there is a single prompt, which was not in a file; it is checked before the folder is created."""
    said: bool | None
    """Whether prompts that do not say so themselves are raw."""

    @property
    def work(self) -> Work:
        """The words for messages."""
        return ATTRIBUTING

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return TokenScore

    @property
    def others(self) -> Sequence[str]:
        """Names of files and folders besides the table."""
        return (FILES,)

    @property
    def units(self) -> list[str]:
        """The names of the prompts."""
        return [one.name for one in self.found.prompts]

    @property
    def lacking(self) -> Mapping[str, str]:
        """No prompt is dropped before it is tried."""
        return {}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the scores depend on except the model."""
        prompt = self.found.prompts[0] if self.single else None
        raw = {} if self.said is None else {"raw": self.said}
        return {
            "command": self.command,
            "prompt": prompt and prompt.text,
            "target": prompt and _recorded(prompt.target),
            "foil": prompt and _recorded(prompt.foil),
            **({} if prompt and prompt.raw else {"raw": False} if prompt else raw),
            **asdict(self.words),
            "attributed_fn": attributed_function(self.words.attributed_fn or default_function(self.found.prompts)),
            "examples_sha256": None if prompt else self.found.sha256,
        }

    @property
    def circumstances(self) -> dict[str, Any]:
        """What is recorded besides the identity."""
        return {"examples": self.found.path, "batch_size": self.batch_size}

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> Analysis:
        """Plan the attribution, and check a single prompt.

        Raises:
            InputError: as ``plan_run`` raises, or ``inputs_of`` for a single prompt.
            UnsupportedModelError: as ``plan_run`` raises.
        """
        asked = questions(tokenizer, self.found.prompts, self.words.chat_template)
        plan = self.plan(model, tokenizer, self.words, self.options)
        if self.words.versus is not None and plan.seq2seq is not None:
            raise InputError("versus is for decoder-only models; this one is an encoder-decoder")
        analysis = AttributionAnalysis(
            plan, asked, self.reduction, read_pairs(self.words.align), self._versus(tokenizer)
        )
        if self.single:
            analysis.inputs_of(asked[0])
        return analysis

    def _versus(self, tokenizer: PreTrainedTokenizerBase) -> Question | None:
        """Return the prompt whose scores are subtracted, if there is one."""
        if self.words.versus is None:
            return None
        other = replace(self.found.prompts[0], text=self.words.versus, subject=None)
        return questions(tokenizer, [other], self.words.chat_template)[0]

    def plan(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        words: RunOptions,
        options: Mapping[str, Any],
    ) -> Plan:
        """Return the plan of the method of ``words``; the arguments are those of ``plan_run``."""
        prompts = self.found.prompts
        foil_asked = self.single and prompts[0].foil is not None
        return plan_run(model, tokenizer, words, prompts, options, self.batch_size, foil_asked)

    def tasks(self, executor: Executor, wanted: Collection[str]) -> Iterator[Task]:
        """Yield a task per wanted prompt: its number."""
        return (Task((name,), number) for number, name in enumerate(self.units) if name in wanted)

    def count(self, executor: Executor, units: Sequence[str]) -> int:
        """Return the number of steps: one per prompt."""
        return len(units)


def _recorded(continuation: str | Sequence[int] | None) -> str | list[int] | None:
    """Return what follows a prompt as JSON stores it."""
    return continuation if continuation is None or isinstance(continuation, str) else list(continuation)


@dataclass(frozen=True)
class AttributionAnalysis(Analysis):
    """Attributes prompts separately, so that their scores do not depend on where a run was interrupted."""

    plan: Plan
    asked: Sequence[Question]
    reduction: Reduction
    alignment: Alignment | None
    versus: Question | None = None
    """Another prompt, whose scores are subtracted."""

    def inputs_of(self, question: Question) -> Inputs:
        """Return the inputs of a prompt.

        Raises:
            InputError: if they do not fit.
        """
        return inputs_of(self.plan, question, self.alignment)

    def do(self, what: int, parts: StoredParts) -> Iterator[Step]:
        """Attribute the prompt of a number; if it cannot be attributed, it is dropped with the reason."""
        question = self.asked[what]
        try:
            found = self._attribution(question, UnitParts(parts, question.name))
            rows = Kept.of(TokenScore, token_scores(question, found), files={file_name(what): compressed(found)})
        except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
            yield Finished(question.name, Dropped(f"{NOT_ATTRIBUTED}: {error}"))
        else:
            yield Finished(question.name, rows)

    def _attribution(self, question: Question, stored: UnitParts) -> Attribution:
        inputs, how = self.inputs_of(question), self.reduction
        # The steps of a whole answer are added up before their dimensions are reduced.
        parts = TextParts(stored, None if self.plan.whole else how.how)
        with of_one_prompt():
            scores = list(attributions(self.plan, inputs, parts))
            minus = None if self.versus is None else self._of_versus(self.versus, inputs)
        found = Attribution(scores, self.plan.info)
        return found.aggregate(
            how.how, normalize=how.normalize, subwords=how.subwords, minus=minus, align=minus is not None
        )

    def _of_versus(self, versus: Question, inputs: Inputs) -> Attribution:
        """Return the attribution of the other prompt, with the continuation of the first one."""
        (text,) = texts_of(self.plan, inputs, 0)
        others = self.inputs_of(replace(versus, target=text.ids[text.n_prompt :]))
        parts = TextParts(how=None if self.plan.whole else self.reduction.how)
        return Attribution(list(attributions(self.plan, others, parts)), self.plan.info)
