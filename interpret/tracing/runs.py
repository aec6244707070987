"""Causal traces of a fact file in a run folder: the grids of each fact beside its rows.

``grids/`` holds one file a fact and mediator, under the keys of ROME's own files; it is whole before the fact's rows
are written, so that a table never speaks of grids that are not there. ``facts.runs`` says which facts are traced.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError, unknown
from interpret.facts.files import Fact, FactFile
from interpret.facts.filter import Answered, Rule
from interpret.facts.runs import BAD_ROW, FactPlan, fact_file, write_facts
from interpret.models.opening import model_circumstances, model_identity
from interpret.records import EXACT, TRACE_METHODS, TraceCell, TraceMethod, TracePeak, csv_header, to_csv
from interpret.storage.disk import replace_whole
from interpret.storage.provenance import objects_sha256
from interpret.storage.run_folder import Run, RunFolder, read_units
from interpret.tracing.facts import sized_for, trace_cells, trace_fact
from interpret.tracing.inputs import TraceSettings, check_settings
from interpret.tracing.mediators import DEFAULT_MEDIATORS, check_mediators, mediator_of
from interpret.tracing.result import TraceResult
from interpret.tracing.tables import TraceGrid, trace_grids, trace_peaks
from interpret.work.loop import Work, fill_folder

GRIDS, PEAKS = "grids", "peaks.csv"
NOT_TRACED = "not traced"
TRACING = Work("Tracing", "traced", "facts", (BAD_ROW, NOT_TRACED))


@dataclass(frozen=True)
class TracePlan(FactPlan):
    """What is traced, and how. The subjects of the whole file set the size of the noise, whatever the limit."""

    mediators: Sequence[str] = DEFAULT_MEDIATORS
    """What is restored."""
    settings: TraceSettings = field(default_factory=TraceSettings)
    """How prompts are corrupted and what is read."""
    method: TraceMethod = EXACT
    """``exact``, ``approximate`` or ``screened``."""

    def __post_init__(self) -> None:
        """Check what needs no model.

        Raises:
            InputError: naming the argument that is wrong.
        """
        super().__post_init__()
        check_mediators(self.mediators)
        check_settings(self.settings)
        if self.method not in TRACE_METHODS:
            raise InputError(unknown("method", self.method, TRACE_METHODS))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything but the model that decides the numbers, as a run records it."""
        settings = self.settings
        texts = settings.reference_texts
        return {
            "command": "trace",
            "facts_sha256": self.facts_sha256,
            "mediators": list(self.mediators),
            "method": self.method,
            "noise": _told_noise(settings.noise),
            "samples": settings.samples,
            "seed": settings.seed,
            "replace": settings.replace,
            "window": settings.window,
            "target": settings.target,
            "filter": self.only_known,
            "rule": self.rule,
            **({} if texts is None else {"reference_texts_sha256": objects_sha256(texts)}),
        }


def _told_noise(noise: Any) -> str:
    """Write a specification as it is, and tell an array by its hash."""
    if isinstance(noise, (str, int, float)):
        return str(noise)
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(noise).tobytes()).hexdigest()}"


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: FactFile | Path | str | Sequence[Fact],
    output: Path | str,
    *,
    settings: TraceSettings | None = None,
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    method: TraceMethod = EXACT,
    limit: int | None = None,
    only_known: bool = True,
    rule: Rule = "words",
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Trace facts into a run folder, as ``interpret trace`` does; the same call resumes a run that was stopped.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: its fast tokenizer.
        facts: a file of facts, what ``load_facts`` read of one, or facts.
        output: the run folder; it gets ``table.csv``, ``peaks.csv``, ``grids/`` and ``manifest.json``.
        settings: how to corrupt and what to read. By default the size of ``s`` noise is set by the subjects of the
            whole file, whatever the limit.
        mediators: what to restore, names of ``MEDIATORS``.
        method: ``exact``, ``approximate`` or ``screened``.
        limit: trace the first facts only; a higher limit continues the run.
        only_known: drop facts that the model does not know.
        rule: when a fact counts as known: ``words`` or ``first_token``, see ``known``.
        progress: show a progress bar on stderr.
        identity: what else decides the numbers, as JSON values, such as the version of a mediator of your own. A run is
            only resumed with an equal one.
        circumstances: what else to write into the manifest; it may change when the run is resumed.

    Returns:
        The folder, to be read.

    Raises:
        InputError: if an argument is wrong for every fact. Facts that cannot be traced are dropped with the reason.
        RunError: if the folder holds another run, or cannot be written.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> interpret.tracing.run(model, tokenizer, "facts.json", "runs/trace").to_frame()  # doctest: +SKIP
    """
    settings = settings or TraceSettings()
    plan = TracePlan(fact_file(facts), limit, only_known, rule, mediators, settings, method)
    folder, _, _ = run_plan(
        model, tokenizer, plan, output, progress=progress, identity=identity, circumstances=circumstances
    )
    return folder


def run_plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: TracePlan,
    output: Path | str,
    *,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> tuple[RunFolder, list[TraceGrid], list[TracePeak]]:
    """Trace what a plan says into a run folder, and return the folder, all its grids and the rows of ``peaks.csv``.

    Arguments and errors are those of ``run``.
    """
    own = {"facts": str(plan.facts.path), "limit": plan.limit, "memory": plan.settings.memory}
    folder = fill_folder(
        TRACING,
        output,
        TraceCell,
        lambda run: write_traces(run, model, tokenizer, plan),
        units=plan.units,
        identity={**model_identity(model), **plan.identity, **(identity or {})},
        circumstances={**model_circumstances(model), **own, **(circumstances or {})},
        progress=progress,
    )
    return folder, *write_peaks(folder.folder)


def write_traces(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: TracePlan
) -> Iterator[str]:
    """Do what is pending in a run, and yield the name of each unit as soon as it is safe.

    Args:
        run: open, over ``plan.units`` and ``TraceCell``.
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: its fast tokenizer.
        plan: the same whenever the run is continued, but for its limit.

    Raises:
        InputError: if the settings are wrong for every fact.
        RunError: if the disk does not take the results; the units before are safe.
        UnsupportedModelError: if the model is not of a supported family.
    """
    settings = sized_for(model, tokenizer, plan.facts.facts, plan.settings)

    def traced(answered: Answered) -> list[TraceCell]:
        results = trace_fact(model, tokenizer, answered.fact, settings, plan.mediators, plan.method)
        folder = run.folder / GRIDS
        folder.mkdir(exist_ok=True)
        for result in results.values():
            path = folder / f"{answered.fact.name}_{result.mediator}.npz"
            replace_whole(path, grid_file(result, window=settings.window, correct=answered.correct))
        return [cell for result in results.values() for cell in trace_cells(answered.fact, result)]

    yield from write_facts(run, model, tokenizer, plan, traced, failed=NOT_TRACED)


def grid_file(result: TraceResult, *, window: int, correct: bool) -> bytes:
    """Return a trace as the bytes of an npz file without pickled objects, the same for the same trace.

    Its keys are ROME's: ``scores`` [T, L], ``low_score``, ``high_score``, ``input_ids`` and ``input_tokens`` [T],
    ``subject_range`` [2], ``answer``, ``window``, ``correct_prediction`` and ``kind`` ("" for hidden states); and
    ours: ``mediator``, ``exact`` [T, L], ``answer_ids``, ``sample_scores`` [S, T, L] and ``sample_lows`` [S].
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
    """Write ``peaks.csv``, one row a fact and mediator, and return the grids of a run and these rows.

    The rows of the table are read fact by fact: only their grids are kept, a small part of their size.

    Raises:
        RunError: if the disk does not take it, or the table cannot be read.
    """
    grids, peaks = [], []
    for rows in read_units(folder, TraceCell):
        grids += trace_grids(rows)
        peaks += trace_peaks(rows)
    replace_whole(folder / PEAKS, csv_header(TracePeak) + to_csv(peaks))
    return grids, peaks
