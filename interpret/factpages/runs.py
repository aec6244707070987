"""Run folders of fact pages: one unit per fact, in parts that are stored as soon as they are computed.

The table has one row per token and layer. The other parts of a fact are in ``facts/NAME.json``: its values are looked
up by name, so that pages of another version can be drawn from the folder.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import check_decoder_only, input_device, unwrapping
from interpret.factpages.parts import PARTS, FactRuns, Json, fact_cells, found_part
from interpret.factpages.settings import FactSettings
from interpret.factpages.stored import DETAILS, details_name
from interpret.facts.files import Fact, FactFile
from interpret.facts.filter import Answered, Rule
from interpret.facts.runs import BAD_ROW, FactAnalysis, FactPlan, fact_file
from interpret.models.opening import Opening
from interpret.prompts.prompts import MODEL_TEMPLATE
from interpret.records import FactCell
from interpret.selfie.rows import Interpreter
from interpret.selfie.settings import INTERPRETATION_PROMPTS
from interpret.selfie.settings import Settings as SelfieSettings
from interpret.selfie.templates import interpretation_prompt
from interpret.storage.outcomes import Kept
from interpret.storage.parts import UnitParts
from interpret.storage.run_folder import RunFolder
from interpret.sweep.base_and_donor import usable_memory
from interpret.tracing.facts import sized_for
from interpret.tracing.inputs import TraceSettings, check_settings
from interpret.work.loop import Work
from interpret.workers.jobs import Say
from interpret.workers.runs import run_job
from interpret.workers.settings import Workers

IN_TABLE = ("lens", "effects", "exact", "layers")
"""The values of parts that are in the table, cell by cell."""
NOT_EXPLAINED = "not explained"
EXPLAINING = Work("Explaining", "explained", "facts", "parts", (BAD_ROW, NOT_EXPLAINED))


@dataclass(frozen=True)
class FactPagePlan(FactPlan):
    """Which facts get a page, and how its numbers are computed; facts that the model does not know get one, too."""

    only_known: bool = False
    settings: FactSettings = field(default_factory=FactSettings)

    def __post_init__(self) -> None:
        """Check the arguments that need no model.

        Raises:
            InputError: if one is invalid; the message names it.
        """
        super().__post_init__()
        check_settings(self.tracing)

    @property
    def tracing(self) -> TraceSettings:
        """The settings of the traces, before the size of the noise is known."""
        own = self.settings
        return TraceSettings(own.noise, own.samples, own.seed, chat_template=own.chat_template)

    @property
    def chat_template(self) -> str | None:
        """The template."""
        return self.settings.chat_template

    @property
    def work(self) -> Work:
        """The words for messages."""
        return EXPLAINING

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return FactCell

    @property
    def others(self) -> Sequence[str]:
        """The folder besides the table."""
        return (DETAILS,)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything except the model that determines the numbers."""
        return {
            "command": "fact",
            "facts_sha256": self.facts_sha256,
            "rule": self.rule,
            **self.settings.identity,
        }

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> "FactPageAnalysis":
        """Return the analysis.

        Raises:
            UnsupportedModelError: if the model has an encoder.
        """
        check_decoder_only(model)
        return FactPageAnalysis(model, tokenizer, self)

    def count(self, executor: object, units: Sequence[str]) -> int:
        """Return the number of steps: one per part of a fact."""
        return len(PARTS) * len(units)


@unwrapping
def run(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    facts: FactFile | Path | str | Sequence[Fact],
    output: Path | str,
    *,
    settings: FactSettings | None = None,
    limit: int | None = None,
    rule: Rule = "words",
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Compute what the pages of facts show, and write a run folder; the same call resumes a run.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        facts: the path of a fact file, the result of ``load_facts``, or a list of facts.
        output: the run folder, with ``table.csv``, ``facts/`` and ``manifest.json``; ``write_pages`` draws it.
        settings: how the numbers are computed; None for the defaults.
        limit: only the first ``limit`` facts; a higher limit extends the run.
        rule: when a fact counts as known: ``words`` or ``first_token``, see ``interpret.facts.known``.
        workers: number of processes that open the model and share the facts, or ``Workers``. They open it as
            ``interpret.load`` has opened it; it may also be an ``Opening``, with None for ``tokenizer``.
        progress: show a progress bar of the parts on stderr.
        identity: further settings that determine the numbers, as JSON values; a run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may differ when the run is resumed.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: if an argument is invalid for every fact. Facts that cannot be explained are dropped with a reason.
        RunError: if the folder holds another run, or cannot be written.
        UnsupportedModelError: if the model has an encoder.

    Example:
        >>> run = interpret.factpages.run(model, tokenizer, "facts.json", "runs/facts")  # doctest: +SKIP
        >>> interpret.factpages.write_pages(run.folder, "pages")  # doctest: +SKIP
    """
    plan = FactPagePlan(fact_file(facts), limit, rule=rule, settings=settings or FactSettings())
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


class FactPageAnalysis(FactAnalysis):
    """Computes the parts of fact pages, fact by fact."""

    failed = NOT_EXPLAINED

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: FactPagePlan) -> None:
        super().__init__(model, tokenizer, plan)
        self._plan = plan

    @cached_property
    def _interpreter(self) -> Interpreter:
        (words,) = INTERPRETATION_PROMPTS
        template = interpretation_prompt(self.tokenizer, words, chat_template=MODEL_TEMPLATE)
        # The page shows the model's continuation once, so the interpreter need not continue each prompt.
        settings = SelfieSettings(prompt_output_tokens=0, seed=self._plan.settings.seed)
        return Interpreter(self.model, self.tokenizer, [template], settings)

    def share(self) -> tuple[TraceSettings, int]:
        """Return what all facts share: the settings of traces with the size of the noise, and the size of batches.

        Raises:
            InputError: if the settings are invalid for all facts.
        """
        sized = sized_for(self.model, self.tokenizer, self._plan.facts.facts, self._plan.tracing)
        memory = usable_memory(sized.memory, input_device(self.model))
        return replace(sized, memory=memory), self._interpreter.batch_size

    def told(self, shared: tuple[TraceSettings, int]) -> dict[str, Any]:
        """Return the size of the noise and the memory of a sweep."""
        tracing, batch_size = shared
        return {"noise": tracing.noise, "memory": tracing.memory, "batch_size": batch_size}

    def steps(self, answered: Answered, shared: tuple[TraceSettings, int], parts: UnitParts) -> Iterator[Kept | None]:
        """Yield None after each part of a fact but the last, and its rows and files after the last."""
        found: dict[str, Json] = {}
        for name, part in self.parts(answered, shared, parts):
            found[name] = part
            if len(found) < len(PARTS):
                yield None
        yield kept(answered.fact, found)

    def parts(
        self, answered: Answered, shared: tuple[TraceSettings, int], parts: UnitParts
    ) -> Iterator[tuple[str, Json]]:
        """Compute the parts of a fact that are not stored, and yield the name and value of each.

        Raises:
            InputError: if a part that a page needs cannot be computed.
            ModelError: if it does not fit in memory.
        """
        tracing, batch_size = shared
        runs = FactRuns(
            self.model,
            self.tokenizer,
            answered,
            self._plan.settings,
            tracing,
            self._interpreter,
            batch_size,
            parts.parts,
        )
        found: dict[str, Json] = {}
        for part in PARTS:
            stored = parts.get(part.name)
            found[part.name] = found_part(part, runs, found) if stored is None else stored
            if stored is None and part is not PARTS[-1]:  # the whole fact follows the last
                parts.keep({part.name: found[part.name]})
            yield part.name, found[part.name]


def kept(fact: Fact, parts: Mapping[str, Json]) -> Kept:
    """Return the rows of a fact, and the file with its other values."""
    cells, details = kept_details(fact, parts)
    text = json.dumps(details, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Kept.of(
        FactCell,
        cells,
        files={details_name(fact.name): text.encode("utf-8", "backslashreplace")},
        dropped_parts={name: part["missing"] for name, part in parts.items() if "missing" in part},
    )


def kept_details(fact: Fact, parts: Mapping[str, Json]) -> tuple[list[FactCell], Json]:
    """Return the rows of a fact, and its other values by part: JSON without NaN and without what the rows have."""
    details: Json = {"fact": asdict(fact)}
    for name, part in parts.items():
        details[name] = plain({key: value for key, value in part.items() if key not in IN_TABLE})
    return fact_cells(fact, parts), details


def plain(value: Any) -> Any:
    """Return a JSON value in which numbers that are not finite are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
