"""Run folders of facts located by attribution: one unit per fact, one row per site, token and layer.

A fact takes one forward and one backward pass, so no parts of it are stored: an interrupt costs one fact.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.attribution.steps.functions import FUNCTIONS, attributed_function
from interpret.errors import InputError
from interpret.facts.files import Fact, FactFile
from interpret.facts.filter import Answered, Rule
from interpret.facts.runs import BAD_ROW, FactPlan, FactResult, fact_file, write_facts
from interpret.locating.facts import CONTRAST, locate_fact, location_cells, location_plan
from interpret.models.opening import model_circumstances, model_identity
from interpret.records import LocationCell
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.work.loop import Work, fill_folder

NOT_LOCATED = "not located"
LOCATING = Work("Locating", "located", "facts", failures=(BAD_ROW, NOT_LOCATED))


@dataclass(frozen=True)
class LocationPlan(FactPlan):
    """Which facts to locate, and the attributed function."""

    attributed_fn: str = CONTRAST
    """The attributed function, see ``locate_facts``."""
    template: str | None = None
    """Template that makes each prompt the user's message of a chat; None to read the prompts as they are."""

    def __post_init__(self) -> None:
        """Check the arguments that need no model, and replace Inseq's name of a function by ours.

        Raises:
            InputError: if an argument is invalid; the message names it.
        """
        super().__post_init__()
        object.__setattr__(self, "attributed_fn", attributed_function(self.attributed_fn))
        if FUNCTIONS[self.attributed_fn].contrast and not any(fact.foil is not None for fact in self.facts.facts):
            raise InputError(
                f"{self.attributed_fn} contrasts the answer with a foil, and no fact has one: give it, with --foil or "
                'the key "foil", or choose another function, such as attributed_fn probability'
            )

    @property
    def chat_template(self) -> str | None:
        """The template."""
        return self.template

    @property
    def identity(self) -> dict[str, Any]:
        """All settings besides the model that determine the numbers, as stored in the manifest."""
        return {
            "command": "locate",
            "facts_sha256": self.facts_sha256,
            "attributed_fn": self.attributed_fn,
            "filter": self.only_known,
            "rule": self.rule,
            **({} if self.template is None else {"chat_template": self.template}),
        }


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: FactFile | Path | str | Sequence[Fact],
    output: Path | str,
    *,
    attributed_fn: str = CONTRAST,
    limit: int | None = None,
    only_known: bool = True,
    rule: Rule = "words",
    chat_template: str | None = None,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Locate facts by attribution and write a run folder, like ``interpret locate``; the same call resumes a run.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        facts: the path of a fact file, the result of ``load_facts``, or a list of facts.
        output: the run folder, with ``table.csv`` and ``manifest.json``.
        attributed_fn: ``contrast_prob_diff``, or a function that needs no foil, such as ``probability``.
        limit: locate only the first ``limit`` facts; a higher limit extends the run.
        only_known: drop facts that the model does not know.
        rule: when a fact counts as known: ``words`` or ``first_token``, see ``known``.
        chat_template: template that makes each prompt the user's message of a chat: ``model`` for the model's own, or a
            text that contains ``{prompt}``; None to read the prompts as they are.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values; a run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may differ when the run is resumed.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: if an argument is invalid for every fact. Facts that cannot be located are dropped with a reason.
        RunError: if the folder holds another run, or cannot be written.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> interpret.locating.run(model, tokenizer, "facts.json", "runs/locations").to_frame()  # doctest: +SKIP
    """
    plan = LocationPlan(fact_file(facts), limit, only_known, rule, attributed_fn, chat_template)
    # Raise errors that concern every fact before the folder is created.
    location_plan(model, tokenizer, plan.attributed_fn)
    return fill_folder(
        LOCATING,
        output,
        LocationCell,
        lambda run: write_locations(run, model, tokenizer, plan),
        units=plan.units,
        identity={**model_identity(model), **plan.identity, **(identity or {})},
        circumstances={
            **model_circumstances(model),
            "facts": plan.facts.source,
            "limit": plan.limit,
            **(circumstances or {}),
        },
        progress=progress,
    )


def write_locations(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: LocationPlan
) -> Iterator[str]:
    """Process the pending units of a run, and yield the name of each unit once it is on disk.

    Args:
        run: an open run with the units ``plan.units`` and rows of type ``LocationCell``.
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        plan: the plan; only its limit may change when the run is resumed.

    Yields:
        Names of finished or dropped units.

    Raises:
        InputError: as ``location_plan`` raises.
        RunError: if the results cannot be written; earlier units are on disk.
        UnsupportedModelError: if the model is not of a supported family.
    """
    checked = location_plan(model, tokenizer, plan.attributed_fn)

    def located(answered: Answered) -> FactResult:
        found = locate_fact(checked, answered.fact, plan.chat_template)
        return FactResult(location_cells(answered.fact, found, attributed_fn=checked.info.attributed_fn))

    yield from write_facts(run, model, tokenizer, plan, located, failed=NOT_LOCATED)
