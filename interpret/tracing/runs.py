"""Causal traces of a fact file in a run folder: the grids of each fact beside its rows.

``grids/`` holds one file a fact and mediator, under the keys of ROME's own files; it is whole before the fact's rows
are written, so that a table never speaks of grids that are not there. Which facts are traced says ``fact_runs``.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.facts.filter import Answered
from interpret.facts.runs import FactPlan, write_facts
from interpret.records import EXACT, TraceCell, TracePeak, csv_header, to_csv
from interpret.storage.disk import replace_whole
from interpret.storage.run_folder import Run, read_units
from interpret.tracing.facts import DEFAULT_MEDIATORS, sized_for, trace_cells, trace_fact
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.mediators import Mediator
from interpret.tracing.result import TraceResult
from interpret.tracing.tables import TraceGrid, trace_grids, trace_peaks

GRIDS, PEAKS = "grids", "peaks.csv"
NOT_TRACED = "not traced"
# What ROME calls the kind of a trace; what it has no word for keeps ours.
ROME_KINDS = {"hidden": "", "attn_window": "attn", "mlp_window": "mlp"}


@dataclass(frozen=True)
class TracePlan(FactPlan):
    """What is traced, and how. The subjects of the whole file set the size of the noise, whatever the limit."""

    mediators: Sequence[Mediator] = DEFAULT_MEDIATORS
    """What is restored."""
    settings: TraceSettings = field(default_factory=TraceSettings)
    """How prompts are corrupted and what is read."""
    method: str = EXACT
    """``exact``, ``approximate`` or ``screened``."""


def write_traces(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: TracePlan
) -> Iterator[str]:
    """Do what is pending in a run, and yield the name of each unit as soon as it is safe.

    Args:
        run: open, over ``plan.units`` and ``TraceCell``.
        model: a causal LM of a known family, in evaluation mode.
        tokenizer: its fast tokenizer.
        plan: the same whenever the run is continued, but for its limit.

    Raises:
        InputError: if the settings are wrong for every fact.
        RunError: if the disk does not take the results; the units before are safe.
        UnsupportedModelError: if the model is of no known family.
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
        kind=ROME_KINDS.get(result.mediator, result.mediator),
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
