"""Compare attribution methods on prompts as units of a run; one row per prompt, attributed token and method."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.attribution.comparison import ComparisonPlan, comparisons, plan_comparison
from interpret.attribution.jobs import NOT_ATTRIBUTED, AttributionJob
from interpret.attribution.plan import Plan
from interpret.attribution.questions import Question, inputs_of, of_one_prompt, questions
from interpret.attribution.run_plan import read_groups, read_pairs
from interpret.attribution.targets import Alignment, Inputs
from interpret.errors import InputError, ModelError
from interpret.records import MethodComparison
from interpret.storage.outcomes import Dropped, Kept
from interpret.storage.parts import StoredParts
from interpret.workers.jobs import Analysis, Finished, Say, Step


@dataclass(frozen=True)
class ComparisonJob(AttributionJob):
    """Prompts on which methods are compared, one unit per prompt; an interrupt costs one prompt."""

    command: ClassVar[str] = "attribute --compare"

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return MethodComparison

    @property
    def others(self) -> Sequence[str]:
        """Names of files and folders besides the table: none."""
        return ()

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> Analysis:
        """Plan the comparison, and check a single prompt.

        Raises:
            InputError: as ``plan_comparison`` raises, or ``inputs_of`` for a single prompt.
            UnsupportedModelError: as ``plan_comparison`` raises.
        """
        assert self.words.compare is not None
        asked = questions(tokenizer, self.found.prompts, self.words.chat_template)
        plan = plan_comparison(
            self.words.compare,
            partial(self._plan_of, model, tokenizer),
            groups=read_groups(self.words.groups),
            how=self.reduction.how,
            options=self.options,
        )
        analysis = ComparisonAnalysis(plan, asked, read_pairs(self.words.align))
        if self.single:
            analysis.inputs_of(asked[0])
        return analysis

    def _plan_of(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: str, options: Mapping[str, Any]
    ) -> Plan:
        return self.plan(model, tokenizer, replace(self.words, method=method, groups=None), options)


@dataclass(frozen=True)
class ComparisonAnalysis(Analysis):
    """Compares methods on one prompt after the other."""

    plan: ComparisonPlan
    asked: Sequence[Question]
    alignment: Alignment | None

    def inputs_of(self, question: Question) -> Inputs:
        """Return the inputs of a prompt.

        Raises:
            InputError: if they do not fit.
        """
        return inputs_of(self.plan.first, question, self.alignment)

    def do(self, what: int, parts: StoredParts) -> Iterator[Step]:
        """Compare the methods on the prompt of a number; if that fails, it is dropped with the reason."""
        question = self.asked[what]
        try:
            with of_one_prompt():
                rows = list(comparisons(self.plan, self.inputs_of(question), [question.name]))
        except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
            yield Finished(question.name, Dropped(f"{NOT_ATTRIBUTED}: {error}"))
        else:
            yield Finished(question.name, Kept.of(MethodComparison, rows))
