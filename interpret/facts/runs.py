"""Process facts in run folders, one unit per fact, for any analysis.

Unreadable rows, facts the model does not know and facts that the analysis cannot process are dropped with a reason.
The others are analysed one by one; each result is on disk before the next fact starts. ``interpret.tracing.runs`` and
``interpret.locating.runs`` provide the analyses.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.device import TOO_LARGE, unless_too_large
from interpret.errors import InputError, ModelError, brief, unknown
from interpret.facts.files import Fact, FactFile, load_facts
from interpret.facts.filter import RULES, Answered, Rule, known
from interpret.finite import MODEL_GIVES_NAN
from interpret.reading import file_key
from interpret.storage.provenance import objects_sha256
from interpret.storage.run import Run
from interpret.work.progress import say

BAD_ROW, UNKNOWN = "bad row", "not known"
"""First words of the reason for which a unit is dropped."""


@dataclass(frozen=True)
class FactResult:
    """What the analysis of one fact gives."""

    rows: Sequence[object]
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Contents of further files, by name in the run folder."""


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
        """Check the rule.

        Raises:
            InputError: if the rule is unknown.
        """
        rule_of(self.rule)

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
        return [_bad_unit(bad.index) for bad in self.facts.bad] + [fact.name for fact in self.chosen]


def rule_of(name: str) -> Rule:
    """Return a rule by its name.

    Raises:
        InputError: if the name is unknown.
    """
    for rule in RULES:
        if rule == name:
            return rule
    raise InputError(unknown("rule", name, RULES))


def fact_file(facts: FactFile | Path | str | Sequence[Fact]) -> FactFile:
    """Return facts as a ``FactFile``; read them if a path is given.

    Args:
        facts: the path of a fact file, the result of ``load_facts``, or a list of facts.

    Raises:
        InputError: as ``load_facts`` raises; also if there are no facts, or two facts have the same name.
    """
    if isinstance(facts, FactFile):
        return facts
    if isinstance(facts, (str, Path)):
        return load_facts(facts)
    names = Counter(fact.name for fact in facts)
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
    return FactFile(list(facts), [])


def write_facts(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: FactPlan,
    analyse: Callable[[Answered], FactResult],
    *,
    failed: str,
) -> Iterator[str]:
    """Process the pending units of a run, and yield the name of each unit once it is on disk.

    Finished facts of which a file is missing or changed are analysed again.

    Args:
        run: an open run with the units ``plan.units``.
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        plan: the plan; only its limit may change when the run is resumed.
        analyse: returns the rows and files of a fact. If it raises an ``InputError`` or a ``ModelError``, or runs out
            of memory, the fact is dropped with the reason.
        failed: first words of the reason for a fact that could not be analysed.

    Yields:
        Names of finished or dropped units.

    Raises:
        RunError: if the results cannot be written; earlier units are on disk.
        UnsupportedModelError: if the model is not of a supported family.
    """
    pending, damaged = set(run.pending), set(run.damaged)
    for bad in plan.facts.bad:
        if (unit := _bad_unit(bad.index)) in pending:
            run.drop(unit, f"{BAD_ROW}: {bad.reason}")
            yield unit
    # Include finished facts: the batches then depend only on the list of facts, as in an uninterrupted run.
    for answered in known(model, tokenizer, plan.chosen, rule=plan.rule, chat_template=plan.chat_template):
        if answered.fact.name in pending:
            _write_fact(run, plan, answered, analyse, failed)
            yield answered.fact.name
        elif answered.fact.name in damaged:
            _write_again(run, answered, analyse)
            yield answered.fact.name


def _write_fact(
    run: Run, plan: FactPlan, answered: Answered, analyse: Callable[[Answered], FactResult], failed: str
) -> None:
    """Analyse one fact and write its rows, or drop it."""
    name = answered.fact.name
    if answered.reason == "too long":
        return run.drop(name, f"{failed}: prompt and answer exceed the model's maximum length")
    if answered.reason == "too large":
        return run.drop(name, f"{failed}: the fact {TOO_LARGE}")
    if plan.only_known and answered.reason == "not finite":
        return run.drop(name, f"{failed}: the model has no answer; {MODEL_GIVES_NAN}")
    if plan.only_known and not answered.correct:
        return run.drop(name, f"{UNKNOWN}: {answered.reason}, {answered.answer_text!r}")
    try:
        found = unless_too_large(partial(analyse, answered))
    except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
        return run.drop(name, f"{failed}: {error}")
    if found is None:
        return run.drop(name, f"{failed}: the fact {TOO_LARGE}")
    return run.write(name, found.rows, files=found.files)


def _write_again(run: Run, answered: Answered, analyse: Callable[[Answered], FactResult]) -> None:
    """Analyse a finished fact again and write its files; a fact that does not fit in memory now keeps its rows."""
    name = answered.fact.name
    found = unless_too_large(partial(analyse, answered))
    if found is None:
        say(f"the files of {name!r} are not made again: the fact {TOO_LARGE}")
    else:
        run.write_again(name, found.files)


def _bad_unit(index: int) -> str:
    """Return the unit name of an unreadable row; the name of its fact may belong to another fact."""
    return f"row_{index}"
