"""Fact files in run folders: one unit a fact, whatever is found out about it.

A row that is no fact, a fact the model does not know and one that the analysis cannot take are dropped, each with its
reason; the others are done one by one, each safe on disk before the next. ``trace_runs`` and ``location_runs`` say
what is done with a fact.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.facts.files import Fact, FactFile
from interpret.facts.filter import Answered, Rule, known
from interpret.storage.run_folder import Run

BAD_ROW, UNKNOWN = "bad row", "not known"
"""Why a unit is dropped: the beginning of its reason."""


@dataclass(frozen=True)
class FactPlan:
    """Which facts are done."""

    facts: FactFile
    """The whole file."""
    limit: int | None = None
    """How many of its facts are done, the first ones; all by default."""
    only_known: bool = True
    """Facts the model does not know are dropped."""
    rule: Rule = "words"
    """What it is to know a fact, see ``known``."""

    @property
    def chosen(self) -> list[Fact]:
        """The facts to do, in the file's order."""
        return self.facts.facts[: self.limit]

    @property
    def units(self) -> list[str]:
        """The units of the run: rows that are no facts, then facts, so that a higher limit only adds units."""
        return [_bad_unit(bad.index) for bad in self.facts.bad] + [fact.name for fact in self.chosen]


def write_facts(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: FactPlan,
    analyse: Callable[[Answered], Sequence[object]],
    *,
    failed: str,
) -> Iterator[str]:
    """Do what is pending in a run, and yield the name of each unit as soon as it is safe.

    Args:
        run: open, over ``plan.units``.
        model: a causal LM of a known family, in evaluation mode.
        tokenizer: its fast tokenizer.
        plan: the same whenever the run is continued, but for its limit.
        analyse: returns the rows of a fact; what it writes beside the table is whole when it returns. An
            ``InputError`` of it is why the fact is dropped.
        failed: how the reason of a fact that could not be done begins.

    Raises:
        RunError: if the disk does not take the results; the units before are safe.
        UnsupportedModelError: if the model is of no known family.
    """
    pending = set(run.pending)
    for bad in plan.facts.bad:
        if (unit := _bad_unit(bad.index)) in pending:
            run.drop(unit, f"{BAD_ROW}: {bad.reason}")
            yield unit
    # All facts are asked, also those that are done: batches then hang on the list alone, as in an unbroken run.
    for answered in known(model, tokenizer, plan.chosen, rule=plan.rule):
        if answered.fact.name in pending:
            _write_fact(run, plan, answered, analyse, failed)
            yield answered.fact.name


def _write_fact(
    run: Run, plan: FactPlan, answered: Answered, analyse: Callable[[Answered], Sequence[object]], failed: str
) -> None:
    """Do one fact, or drop it."""
    name = answered.fact.name
    if answered.reason == "too long":
        return run.drop(name, f"{failed}: prompt and answer exceed the model's positions")
    if plan.only_known and not answered.correct:
        return run.drop(name, f"{UNKNOWN}: {answered.reason}, {answered.answer_text!r}")
    try:
        rows = analyse(answered)
    except InputError as error:
        return run.drop(name, f"{failed}: {error}")
    return run.write(name, rows)


def drop_counts(dropped: Mapping[str, str]) -> Counter[str]:
    """Count the units a run dropped by the kind of reason.

    Args:
        dropped: units and reasons, as ``Run.dropped`` holds them.

    >>> drop_counts({"row_3": "bad row: row 3: ...", "known_1": "not known: wrong answer, ' a'"})
    Counter({'bad row': 1, 'not known': 1})
    """
    return Counter(reason.partition(":")[0] for reason in dropped.values())


def _bad_unit(index: int) -> str:
    """Name the unit of a row that is no fact; its own name may be that of a fact."""
    return f"row_{index}"
