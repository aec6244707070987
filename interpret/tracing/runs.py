"""Trace a fact file into a run folder: the rows of a table, and one grid file per fact, mediator and metric.

The files in ``grids/`` have the keys of ROME's result files. They are complete before the fact's rows are written, so
that every fact in the table has its grids. ``interpret.facts.runs`` chooses the facts.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import input_device, unwrapping
from interpret.errors import InputError, unknown
from interpret.facts.files import Fact, FactFile
from interpret.facts.filter import Answered, Rule
from interpret.facts.runs import BAD_ROW, FactAnalysis, FactPlan, fact_file
from interpret.models.opening import Opening
from interpret.records import (
    EXACT,
    TRACE_METHODS,
    TraceCell,
    TraceMethod,
    TracePeak,
    UnitCell,
    csv_header,
    from_csv,
    to_csv,
)
from interpret.storage.disk import replace_whole, write_inside
from interpret.storage.journal import checksums, is_intact
from interpret.storage.outcomes import Kept
from interpret.storage.parts import UnitParts
from interpret.storage.provenance import objects_sha256
from interpret.storage.run_folder import RunFolder, read_units
from interpret.sweep.base_and_donor import usable_memory
from interpret.sweep.metrics import Kind
from interpret.tracing.facts import sized_for, trace_fact, trace_fact_units
from interpret.tracing.inputs import TraceSettings, check_settings
from interpret.tracing.knowledge_tracing import HookNames, check_module_names
from interpret.tracing.mediators import DEFAULT_MEDIATORS, UNIT_MEDIATORS, check_run_mediators, mediator_of
from interpret.tracing.metrics import check_trace_metrics
from interpret.tracing.result import TraceResult, trace_cells
from interpret.tracing.tables import TraceGrid, trace_grids, trace_peaks, with_metric
from interpret.tracing.units import unit_cells
from interpret.work.loop import Work
from interpret.workers.jobs import Say
from interpret.workers.runs import run_job
from interpret.workers.settings import Workers

GRIDS, PEAKS = "grids", "peaks.csv"
UNITS, UNITS_TABLE = "units", "units.csv"
NOT_TRACED = "not traced"
TRACING = Work("Tracing", "traced", "facts", "mediators", (BAD_ROW, NOT_TRACED))


@dataclass(frozen=True)
class TracePlan(FactPlan):
    """What is traced, and how. The subjects of the whole file set the size of the noise, independent of the limit."""

    mediators: Sequence[str] = DEFAULT_MEDIATORS
    """Names of the mediators."""
    settings: TraceSettings = field(default_factory=TraceSettings)
    """How prompts are corrupted and which tokens are read."""
    method: TraceMethod = EXACT
    """``exact``, ``approximate``, ``relp`` or ``screened``."""
    metrics: Sequence[Kind] | None = None
    """What is read, instead of the metric of the settings; None for that metric."""

    module_names: HookNames | None = None
    """The names of a Knowledge-Tracing configuration, which are compared with those of the model."""

    def __post_init__(self) -> None:
        """Check the arguments that can be checked without a model.

        Raises:
            InputError: if an argument is invalid; the message names it.
        """
        super().__post_init__()
        check_settings(self.settings)
        if self.method not in TRACE_METHODS:
            raise InputError(unknown("method", self.method, TRACE_METHODS))
        check_trace_metrics(self.read)
        for metric in self.read:
            check_run_mediators(self.mediators, self.method, metric)

    @property
    def read(self) -> tuple[Kind, ...]:
        """The metrics that are read, one or several."""
        return (self.settings.metric,) if self.metrics is None else tuple(self.metrics)

    @property
    def chat_template(self) -> str | None:
        """Template that makes each prompt the user's message of a chat; None to read the prompts as they are."""
        return self.settings.chat_template

    @property
    def work(self) -> Work:
        """The words for messages."""
        return TRACING

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return TraceCell

    @property
    def others(self) -> Sequence[str]:
        """Names of files and folders besides the table."""
        return GRIDS, PEAKS, UNITS, UNITS_TABLE

    @property
    def circumstances(self) -> dict[str, Any]:
        """What is recorded besides the identity."""
        return {**super().circumstances, "memory": self.settings.memory}

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> "TraceAnalysis":
        """Return the analysis.

        Raises:
            InputError: if the module names are not those of the model.
        """
        if self.module_names is not None:
            check_module_names(model, self.module_names)
        return TraceAnalysis(model, tokenizer, self)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything except the model that determines the numbers, as recorded in the manifest."""
        settings = self.settings
        texts = settings.reference_texts
        return {
            "command": "trace",
            "facts_sha256": self.facts_sha256,
            "mediators": list(self.mediators),
            "method": self.method,
            "noise": _recorded_noise(settings.noise),
            "samples": settings.samples,
            "seed": settings.seed,
            "replace": settings.replace,
            "window": settings.window,
            "answer_tokens": settings.answer_tokens,
            "metric": self.read[0] if len(self.read) == 1 else list(self.read),
            "filter": self.only_known,
            "rule": self.rule,
            **({} if self.chat_template is None else {"chat_template": self.chat_template}),
            **({} if texts is None else {"reference_texts_sha256": objects_sha256(texts)}),
        }


def _recorded_noise(noise: Any) -> str:
    """Return a noise specification as text, or the hash of an array."""
    if isinstance(noise, (str, int, float)):
        return str(noise)
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(noise).tobytes()).hexdigest()}"


@unwrapping
def run(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    facts: FactFile | Path | str | Sequence[Fact],
    output: Path | str,
    *,
    settings: TraceSettings | None = None,
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    method: TraceMethod = EXACT,
    metrics: Sequence[Kind] | None = None,
    limit: int | None = None,
    only_known: bool = True,
    rule: Rule = "words",
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Trace facts into a run folder, as ``interpret trace`` does; the same call resumes a stopped run.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        facts: path of a fact file, the result of ``load_facts``, or a list of facts.
        output: the run folder; ``table.csv``, ``peaks.csv``, ``grids/`` and ``manifest.json`` are written into it.
        settings: how prompts are corrupted and what is read; None for the defaults. By default, the size of ``s``
            noise is set by the subjects of the whole file, independent of the limit.
        mediators: names of mediators in ``MEDIATORS``; also ``heads`` and ``neurons``, whose rows, ``UnitCell``
            records, are in ``units.csv``.
        method: ``exact``, ``approximate``, ``relp`` or ``screened``, see ``trace_mediators``.
        metrics: what is read: ``probability``, ``log_probability``, ``logit``, ``logit_difference`` or ``rank``, or
            several of them, which exact traces read off the same runs; None for the metric of the settings. The rows of
            each have its name in their column ``metric``.
        limit: trace only the first ``limit`` facts; a call with a higher limit resumes the run.
        only_known: filter out facts that the model does not know.
        rule: when a fact counts as known: ``words`` or ``first_token``, see ``known``.
        workers: number of processes that open the model and share the facts, or ``Workers``. They open it as
            ``interpret.load`` has opened it; it may also be an ``Opening``, with None for ``tokenizer``.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values, such as the version of your own mediator;
            a run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may change when the run is resumed.

    Returns:
        The run folder, for reading the results.

    Raises:
        InputError: if an argument is invalid. A fact that cannot be traced is dropped with its reason instead.
        RunError: if the folder holds another run, or cannot be written.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> interpret.tracing.run(model, tokenizer, "facts.json", "runs/trace").to_frame()  # doctest: +SKIP
    """
    settings = settings or TraceSettings()
    plan = TracePlan(fact_file(facts), limit, only_known, rule, mediators, settings, method, metrics)
    folder, _, _ = run_plan(
        model,
        tokenizer,
        plan,
        output,
        workers=workers,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )
    return folder


def run_plan(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    plan: TracePlan,
    output: Path | str,
    *,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> tuple[RunFolder, list[TraceGrid], list[TracePeak]]:
    """Trace the facts of a plan into a run folder; return the folder, all grids and the rows of ``peaks.csv``.

    Arguments and errors are those of ``run``.
    """
    folder = run_job(
        plan,
        model,
        tokenizer,
        output,
        workers=workers,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )
    write_units(folder, plan.mediators)
    return folder, *write_peaks(folder.folder)


class TraceAnalysis(FactAnalysis):
    """Traces facts, one by one."""

    failed = NOT_TRACED

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: TracePlan) -> None:
        super().__init__(model, tokenizer, plan)
        self._plan = plan

    def share(self) -> TraceSettings:
        """Return the settings with the size of the noise, and with the memory that a sweep may use.

        Both would otherwise depend on who traces a fact: on the rounding of a device, and on its free memory.

        Raises:
            InputError: if the settings are invalid for all facts.
        """
        sized = sized_for(self.model, self.tokenizer, self._plan.facts.facts, self._plan.settings)
        return replace(sized, memory=usable_memory(sized.memory, input_device(self.model)))

    def told(self, shared: TraceSettings) -> dict[str, Any]:
        """Return the memory that a sweep may use, on which the sizes of batches depend."""
        return {"memory": shared.memory}

    def analyse(self, answered: Answered, shared: TraceSettings, parts: UnitParts) -> Kept:
        """Return the rows and grid files of a fact; each part is stored once it is traced."""
        plan = self._plan
        # An exact trace does not depend on the other mediators, so each is a part. Estimates share most of the work.
        groups = [[one] for one in plan.mediators] if plan.method == EXACT else [list(plan.mediators)]
        found = []
        for group in groups:
            part = _Part(parts, group[0])
            traced = part.stored() or self._traced(answered, shared, group)
            if group is not groups[-1]:  # the whole fact follows the last
                part.keep(traced)
            found.append(traced)
        files = {name: content for one in found for name, content in one.files.items()}
        return Kept(b"".join(one.csv for one in found), sum(one.count for one in found), files)

    def _traced(self, answered: Answered, settings: TraceSettings, mediators: Sequence[str]) -> Kept:
        """Trace a fact by some mediators."""
        fact, window = answered.fact, settings.window
        if mediators[0] in UNIT_MEDIATORS:
            return self._traced_units(fact, settings, mediators[0])
        metrics = self._plan.read
        results = trace_fact(self.model, self.tokenizer, fact, settings, mediators, self._plan.method, metrics)
        grids = {
            grid_name(fact.name, with_metric(result.mediator, result.metric, metrics)): grid_file(
                result, window=window, correct=answered.correct
            )
            for result in results
        }
        cells = (cell for result in results for cell in trace_cells(fact, result))
        return Kept.of(TraceCell, cells, files=grids)

    def _traced_units(self, fact: Fact, settings: TraceSettings, site: str) -> Kept:
        """Trace single heads or neurons of a fact; their rows have a file of their own."""
        of_metrics = [replace(settings, metric=metric) for metric in self._plan.read]
        traces = [trace_fact_units(self.model, self.tokenizer, fact, one, site) for one in of_metrics]
        cells = (cell for found in traces for cell in unit_cells(fact, found))
        return Kept(b"", 0, {units_name(fact.name, site): csv_header(UnitCell) + to_csv(cells)})


@dataclass(frozen=True)
class _Part:
    """The trace of one fact by some mediators, in the files of a run."""

    parts: UnitParts
    """The parts of the fact."""
    name: str
    """The first mediator."""

    def stored(self) -> Kept | None:
        """Return what an interrupted run stored; None if there is nothing, or a grid file is not the one stored."""
        found, folder = self.parts.get(self.name), self.parts.folder
        if found is None or folder is None:
            return None
        if not all(is_intact(folder / name, crc32) for name, crc32 in found["grids"].items()):
            return None
        csv = found["rows"].encode()
        count = len(from_csv(TraceCell, csv_header(TraceCell) + csv))
        return Kept(csv, count, {name: (folder / name).read_bytes() for name in found["grids"]})

    def keep(self, found: Kept) -> None:
        """Write the grid files, and store the rows with the checksums of the files; in a worker, nothing is stored."""
        if self.parts.folder is None:
            return
        for name, grid in found.files.items():
            write_inside(self.parts.folder, name, grid)
        self.parts.keep({self.name: {"rows": found.csv.decode(), "grids": checksums(found.files)}})


def grid_name(name: str, mediator: str) -> str:
    """Return the name of a grid file in the run folder: of a fact and a mediator."""
    return f"{GRIDS}/{name}_{mediator.replace(':', '_')}.npz"


def units_name(name: str, site: str) -> str:
    """Return the name of a file of single heads or neurons in the run folder."""
    return f"{UNITS}/{name}_{site}.csv"


def write_units(run: RunFolder, mediators: Sequence[str]) -> None:
    """Join the files of single heads and neurons to ``units.csv``, fact by fact, if the run has such mediators.

    Raises:
        RunError: if the file cannot be written.
    """
    sites = [name for name in mediators if name in UNIT_MEDIATORS]
    names = [units_name(fact, site) for fact in run.units if fact not in run.dropped for site in sites]
    header = csv_header(UnitCell)
    files = [path.read_bytes() for name in names if (path := run.folder / name).is_file()]
    if files:
        replace_whole(run.folder / UNITS_TABLE, header + b"".join(file.removeprefix(header) for file in files))


def grid_file(result: TraceResult, *, window: int, correct: bool) -> bytes:
    """Return a trace as the bytes of an npz file without pickled objects; equal traces give equal bytes.

    Its keys are those of ROME: ``scores`` [T, L], ``low_score``, ``high_score``, ``input_ids`` and ``input_tokens``
    [T], ``subject_range`` [2], ``answer``, ``window``, ``correct_prediction`` and ``kind`` ("" for hidden states); and
    our own: ``metric``, ``mediator``, ``exact`` [T, L], ``answer_ids``, ``sample_scores`` [S, T, L] and ``sample_lows``
    [S].
    """
    file = io.BytesIO()
    np.savez(
        file,
        scores=result.scores,
        low_score=result.low,
        high_score=result.high,
        input_ids=np.array(result.token_ids),
        input_tokens=np.array(result.tokens),
        subject_range=np.array(result.subject_span),
        answer=result.answer,
        metric=result.metric,
        window=window,
        correct_prediction=correct,
        kind=result.mediator if (kind := mediator_of(result.mediator).rome_kind) is None else kind,
        mediator=result.mediator,
        exact=result.exact,
        answer_ids=np.array(result.answer_ids),
        sample_scores=result.sample_scores,
        sample_lows=result.sample_lows,
    )
    return file.getvalue()


def write_peaks(folder: Path) -> tuple[list[TraceGrid], list[TracePeak]]:
    """Write ``peaks.csv``, two rows per fact, mediator and metric; return the grids of a run and these rows.

    The table is read fact by fact, and only the grids are kept, which need much less memory than the rows.

    Raises:
        RunError: if the file cannot be written, or the table cannot be read.
    """
    grids, peaks = [], []
    for rows in read_units(folder, TraceCell):
        grids += trace_grids(rows)
        peaks += trace_peaks(rows)
    replace_whole(folder / PEAKS, csv_header(TracePeak) + to_csv(peaks))
    return grids, peaks
