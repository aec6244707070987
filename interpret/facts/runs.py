"""Process facts in run folders, one unit per fact, for any analysis.

Unreadable rows, facts the model does not know and facts that the analysis cannot process are dropped with a reason.
The others are analysed one by one; each result is on disk before the next fact starts. ``interpret.tracing.runs`` and
``interpret.locating.runs`` provide the analyses.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.device import TOO_LARGE, unless_too_large
from interpret.errors import InputError, ModelError, brief, unknown
from interpret.facts.files import Fact, FactFile, load_facts
from interpret.facts.filter import BATCH_SIZE, CHUNK, RULES, Answered, FactBatch, Rule, fact_batches, too_long
from interpret.finite import MODEL_GIVES_NAN
from interpret.prompts.prompts import check_template
from interpret.reading import file_key
from interpret.storage.outcomes import Dropped, Kept
from interpret.storage.parts import StoredParts, UnitParts
from interpret.storage.provenance import objects_sha256
from interpret.workers.jobs import Analysis, Executor, Finished, Settled, Step, Task

BAD_ROW, UNKNOWN = "bad row", "not known"
"""First words of the reason for which a unit is dropped."""
IN_CHUNK = CHUNK * BATCH_SIZE
"""Number of facts whose batches are made together."""


@dataclass(frozen=True)
class FactPlan:
    """Which facts to analyse."""

    facts: FactFile
    """All rows of the fact file."""
    limit: int | None = None
    """Analyse only the first ``limit`` facts; None for all."""
    only_known: bool = True
    """Drop facts that the model does not know."""
    rule: Rule = "words"
    """When a fact counts as known, see ``known``."""

    def __post_init__(self) -> None:
        """Check the rule and the chat template.

        Raises:
            InputError: if the rule is unknown, or the template has no place for the prompt.
        """
        rule_of(self.rule)
        if self.chat_template is not None:
            check_template(self.chat_template)

    @property
    def chat_template(self) -> str | None:
        """Template that makes each prompt the user's message of a chat; None to read the prompts as they are."""
        return None

    @property
    def chosen(self) -> list[Fact]:
        """The facts to analyse, in file order."""
        return self.facts.facts[: self.limit]

    @property
    def facts_sha256(self) -> str:
        """Identity of the facts: the sha256 of their file, or of the facts if they were not read from a file."""
        return self.facts.sha256 or objects_sha256([*self.facts.facts, *self.facts.bad])

    @property
    def units(self) -> list[str]:
        """The units of the run: unreadable rows, then facts, so that a higher limit only appends units."""
        return [*self.lacking, *(fact.name for fact in self.chosen)]

    @property
    def lacking(self) -> dict[str, str]:
        """The units of unreadable rows, with the reason; the name of their fact may belong to another fact."""
        return {f"row_{bad.index}": f"{BAD_ROW}: {bad.reason}" for bad in self.facts.bad}

    @property
    def others(self) -> Sequence[str]:
        """Names of files and folders besides the table."""
        return ()

    @property
    def circumstances(self) -> dict[str, Any]:
        """What is recorded besides the identity."""
        return {"facts": self.facts.source, "limit": self.limit}

    def tasks(self, executor: Executor, wanted: Collection[str]) -> Iterator[Task]:
        """Yield a task per wanted fact, with the model's answer to its prompt.

        The batches of prompts depend only on the list of facts, as in an uninterrupted run; those without a wanted
        fact are left out.
        """
        settled: SettledFacts = executor.settled()
        facts = self.chosen
        chunks = [[batch for batch in chunk if _some_of(facts, batch, wanted)] for chunk in settled.batches]
        answers = executor.ask(
            FactBatch(tuple(facts[number] for number in batch), self.rule, self.chat_template)
            for chunk in chunks
            for batch in chunk
        )
        for number, chunk in enumerate(chunks):
            found = {at: answered for batch in chunk for at, answered in zip(batch, next(answers), strict=True)}
            for at, fact in enumerate(facts[number * IN_CHUNK : (number + 1) * IN_CHUNK], number * IN_CHUNK):
                if fact.name in wanted:
                    yield Task((fact.name,), (found.get(at) or too_long(fact), settled.shared))

    def count(self, executor: Executor, units: Sequence[str]) -> int:
        """Return the number of steps: one per unit."""
        return len(units)


def rule_of(name: str) -> Rule:
    """Return a rule by its name.

    Raises:
        InputError: if the name is unknown.
    """
    for rule in RULES:
        if rule == name:
            return rule
    raise InputError(unknown("rule", name, RULES))


Facts = FactFile | Path | str | Sequence[Fact] | Iterable[Mapping[str, Any]]
"""Facts as the run functions take them, see ``fact_file``."""


def fact_file(facts: Facts) -> FactFile:
    """Return facts as a ``FactFile``; read them if they are not ``Fact`` objects.

    Args:
        facts: the path of a fact file, the result of ``load_facts``, a list of facts, or what ``load_facts`` reads:
            a list of dicts or a Hugging Face data set.

    Raises:
        InputError: as ``load_facts`` raises; also if there are no facts, or two facts have the same name.
    """
    if isinstance(facts, FactFile):
        return facts
    if isinstance(facts, (str, Path)):
        return load_facts(facts)
    if not isinstance(facts, Sequence) or not all(isinstance(fact, Fact) for fact in facts):
        return load_facts(cast(Iterable[Mapping[str, Any]], facts))
    listed = cast(Sequence[Fact], facts)
    names = Counter(fact.name for fact in listed)
    if not names:
        raise InputError("facts is empty; give at least one fact")
    name, count = names.most_common(1)[0]
    if count > 1:
        raise InputError(f"{count} facts have the name {brief(name)}; the facts of a run need unique names")
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(file_key(name), name)) != name:
            raise InputError(
                f"the facts {brief(other)} and {brief(name)} differ by the case of letters only, which some systems do "
                "not distinguish in names of files"
            )
    return FactFile(list(listed), [])


@dataclass(frozen=True)
class SettledFacts(Settled):
    """What is decided once for all facts."""

    batches: Sequence[Sequence[Sequence[int]]]
    """The result of ``fact_batches``."""
    shared: Any
    """The result of ``FactAnalysis.share``."""
    told: Mapping[str, Any]
    """The part of it that is recorded."""

    @property
    def recorded(self) -> Mapping[str, Any]:
        """What all facts share."""
        return self.told


class FactAnalysis(Analysis):
    """An analysis of facts, one by one; subclasses define ``analyse``, or ``steps`` if a fact has several."""

    failed: str
    """First words of the reason for a fact that could not be analysed."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: FactPlan) -> None:
        self.model, self.tokenizer, self._facts = model, tokenizer, plan

    def analyse(self, answered: Answered, shared: Any, parts: UnitParts) -> Kept:
        """Return the rows and files of a fact.

        Args:
            answered: the fact, with the model's answer.
            shared: the result of ``share``.
            parts: the stored parts of the fact.

        Raises:
            InputError: if the fact cannot be analysed.
            ModelError: if it does not fit in memory.
        """
        raise NotImplementedError

    def share(self) -> Any:
        """Return what must be the same for all facts and depends on the model; by default None."""
        return None

    def settle(self) -> SettledFacts:
        """Return the batches in which facts are answered, and what all facts share."""
        plan = self._facts
        batches = fact_batches(
            self.model, self.tokenizer, plan.chosen, rule=plan.rule, chat_template=plan.chat_template
        )
        shared = self.share()
        return SettledFacts(batches, shared, self.told(shared))

    def told(self, shared: Any) -> Mapping[str, Any]:
        """Return what is recorded of ``share``, as JSON values; by default nothing."""
        return {}

    def ask(self, question: FactBatch) -> list[Answered]:
        """Return the model's answers to the prompts of facts."""
        return question.answers(self.model, self.tokenizer)

    def do(self, what: tuple[Answered, Any], parts: StoredParts) -> Iterator[Step]:
        """Analyse one fact; if it cannot be analysed, it is dropped with the reason."""
        answered, shared = what
        name = answered.fact.name
        if reason := self._drop_reason(answered):
            yield Finished(name, Dropped(reason))
            return
        try:
            for found in self.steps(answered, shared, UnitParts(parts, name)):
                yield None if found is None else Finished(name, found)
        except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
            yield Finished(name, Dropped(f"{self.failed}: {error}"))

    def steps(self, answered: Answered, shared: Any, parts: UnitParts) -> Iterator[Kept | None]:
        """Yield the steps of a fact: None for those before the last, then its rows and files; by default one step."""
        found = unless_too_large(partial(self.analyse, answered, shared, parts))
        if found is None:
            raise ModelError(f"the fact {TOO_LARGE}")
        yield found

    def _drop_reason(self, answered: Answered) -> str | None:
        """Return why a fact is not analysed; None if it is."""
        if answered.reason == "too long":
            return f"{self.failed}: prompt and answer exceed the model's maximum length"
        if answered.reason == "too large":
            return f"{self.failed}: the fact {TOO_LARGE}"
        if self._facts.only_known and answered.reason == "not finite":
            return f"{self.failed}: the model has no answer; {MODEL_GIVES_NAN}"
        if self._facts.only_known and not answered.correct:
            return f"{UNKNOWN}: {answered.reason}, {answered.answer_text!r}"
        return None


def _some_of(facts: Sequence[Fact], batch: Sequence[int], wanted: Collection[str]) -> bool:
    return any(facts[number].name in wanted for number in batch)
