"""Facts located by attribution in a run folder: one unit a fact, one row a site, token and layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.facts.filter import Answered
from interpret.facts.runs import FactPlan, write_facts
from interpret.locating.facts import CONTRAST, locate_fact, location_cells, location_plan
from interpret.records import LocationCell
from interpret.storage.run_folder import Run

NOT_LOCATED = "not located"


@dataclass(frozen=True)
class LocationPlan(FactPlan):
    """Which facts are located, and by what."""

    attributed_fn: str = CONTRAST
    """What is attributed, see ``locate_facts``."""


def write_locations(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: LocationPlan
) -> Iterator[str]:
    """Do what is pending in a run, and yield the name of each unit as soon as it is safe.

    Args:
        run: open, over ``plan.units`` and ``LocationCell``.
        model: a causal LM of a known family, in evaluation mode.
        tokenizer: its fast tokenizer.
        plan: the same whenever the run is continued, but for its limit.

    Raises:
        InputError: as ``location_plan`` does.
        RunError: if the disk does not take the results; the units before are safe.
        UnsupportedModelError: if the model is of no known family.
    """
    checked = location_plan(model, tokenizer, plan.attributed_fn)

    def located(answered: Answered) -> list[LocationCell]:
        found = locate_fact(checked, answered.fact)
        return location_cells(answered.fact, found, attributed_fn=checked.info.attributed_fn)

    yield from write_facts(run, model, tokenizer, plan, located, failed=NOT_LOCATED)
