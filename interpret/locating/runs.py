"""Run folders of facts located by attribution: one unit per fact, one row per site, token and layer.

A fact takes one forward and one backward pass, so no parts of it are stored: an interrupt costs one fact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.attribution.steps.functions import FUNCTIONS, attributed_function
from interpret.errors import InputError
from interpret.facts.files import Fact, FactFile
from interpret.facts.filter import Answered, Rule
from interpret.facts.runs import BAD_ROW, FactAnalysis, FactPlan, fact_file
from interpret.locating.facts import CONTRAST, locate_fact, location_cells, location_plan
from interpret.models.opening import Opening
from interpret.records import LocationCell
from interpret.storage.outcomes import Kept
from interpret.storage.parts import UnitParts
from interpret.storage.run_folder import RunFolder
from interpret.work.loop import Work
from interpret.workers.jobs import Say
from interpret.workers.runs import run_job
from interpret.workers.settings import Workers

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
    def work(self) -> Work:
        """The words for messages."""
        return LOCATING

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return LocationCell

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> "LocationAnalysis":
        """Check what concerns every fact, and return the analysis.

        Raises:
            InputError: as ``location_plan`` raises.
        """
        return LocationAnalysis(model, tokenizer, self)

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


@unwrapping
def run(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    facts: FactFile | Path | str | Sequence[Fact],
    output: Path | str,
    *,
    attributed_fn: str = CONTRAST,
    limit: int | None = None,
    only_known: bool = True,
    rule: Rule = "words",
    chat_template: str | None = None,
    workers: int | Workers = 1,
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
        workers: number of processes that open the model and share the facts, or ``Workers``. They open it as
            ``interpret.load`` has opened it; it may also be an ``Opening``, with None for ``tokenizer``.
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
    return run_job(
        plan,
        model,
        tokenizer,
        output,
        workers=workers,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )


class LocationAnalysis(FactAnalysis):
    """Locates facts by attribution."""

    failed = NOT_LOCATED

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: LocationPlan) -> None:
        """Check the attributed function.

        Raises:
            InputError: as ``location_plan`` raises.
        """
        super().__init__(model, tokenizer, plan)
        self._plan = plan
        self._checked = location_plan(model, tokenizer, plan.attributed_fn)

    def analyse(self, answered: Answered, shared: Any, parts: UnitParts) -> Kept:
        """Return the scores of a fact."""
        found = locate_fact(self._checked, answered.fact, self._plan.chat_template)
        cells = location_cells(answered.fact, found, attributed_fn=self._checked.info.attributed_fn)
        return Kept.of(LocationCell, cells)
