"""Convert the rows of causal traces to grids, averages and peaks for tables and figures; no model is needed.

``trace_grids`` converts the rows of each fact, mediator and metric to arrays. ``bucket_averages`` averages the grids,
first within each prompt and then over prompts (AIE). ``trace_peaks`` finds the largest effect of each fact.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from interpret.errors import InputError
from interpret.facts.buckets import Scheme
from interpret.facts.grids import Grid, bucket_averages, bucket_means_of, by_part, tokens_by_layers
from interpret.records import EXACT, TraceAverage, TraceCell, TracePeak, UnitCell
from interpret.stats import Average, Floats, average
from interpret.tracing.mediators import mediator_of

ALL, SUBJECT = "all", "subject"
"""The tokens among which a peak is searched: all tokens, or those of the subject."""


@dataclass(frozen=True, kw_only=True)
class TraceGrid(Grid):
    """The trace of one fact with one mediator, by one metric; its effects are indirect effects."""

    prompt: str
    """The prompt."""
    metric: str
    """What is measured, see ``TraceSettings``."""
    mediator: str
    """Name of the mediator."""
    clean: float
    """The metric in the clean run."""
    corrupted: float
    """Mean of the metric in the corrupted runs."""
    scores: Floats
    """[T, L], mean of the metric with one state restored, corrupted, or with attention knocked out."""
    spread: Floats
    """[T, L], standard deviations of the effects over noise samples; NaN for a single sample."""
    exact: NDArray[np.bool_]
    """[T, L], True for exact cells, False for estimates."""

    share: bool = False
    """Whether effects and spread are divided by the total effect, see ``normalised``."""

    @property
    def total_effect(self) -> float:
        """TE, the metric in the clean run minus that in the corrupted runs."""
        return self.clean - self.corrupted


def trace_grids(rows: Iterable[TraceCell]) -> list[TraceGrid]:
    """Convert rows to one grid per fact, mediator and metric, in order of first appearance.

    Raises:
        InputError: if there are no rows, or a grid has missing or repeated cells, or no token of the subject.
    """
    return [_grid(*of_one) for of_one in tokens_by_layers(rows, "mediator", "metric")]


def _grid(ordered: Sequence[TraceCell], shape: tuple[int, int], subject_span: tuple[int, int]) -> TraceGrid:
    """Convert the ordered cells of one fact, mediator and metric to a grid."""
    first = ordered[0]
    stds = [np.nan if cell.effect_std is None else cell.effect_std for cell in ordered]
    return TraceGrid(
        name=first.name,
        prompt=first.prompt,
        answer=first.answer,
        metric=first.metric,
        mediator=first.mediator,
        tokens=tuple(cell.token for cell in ordered[:: shape[1]]),
        subject_span=subject_span,
        clean=first.clean,
        corrupted=first.corrupted,
        scores=np.array([cell.restored for cell in ordered]).reshape(shape),
        effects=np.array([cell.indirect_effect for cell in ordered]).reshape(shape),
        spread=np.array(stds).reshape(shape),
        exact=np.array([cell.method == EXACT for cell in ordered]).reshape(shape),
    )


def normalised(traced: Iterable[TraceGrid]) -> list[TraceGrid]:
    """Divide the effects of each grid by its total effect, so that facts whose answers differ in size can be compared.

    A small total effect makes noise large, so facts that the corruption does not change should be left out.
    """
    return [
        replace(grid, effects=grid.effects / grid.total_effect, spread=grid.spread / abs(grid.total_effect), share=True)
        for grid in traced
    ]


METRIC_WORDS = {"probability": "P", "log_probability": "log P", "logit_difference": "logit difference"}


def metric_of(metric: str, answer: str = "answer") -> str:
    """Return a metric of an answer as figures and pages say it.

    >>> metric_of("probability", "Paris"), metric_of("rank")
    ('P(Paris)', 'rank(answer)')
    """
    return f"{METRIC_WORDS.get(metric, metric)}({answer})"


def with_metric(name: str, metric: str, metrics: Collection[str]) -> str:
    """Return the name of a file about one of some metrics: with the metric, if there are several.

    Names of metrics have no hyphen, so no two names become the same.

    >>> with_metric("average_lines", "logit", ["rank", "logit"]), with_metric("average_lines", "logit", ["logit"])
    ('average_lines-logit', 'average_lines')
    """
    return f"{name}-{metric}" if len(metrics) > 1 else name


def check_same_metric(traced: Iterable[TraceGrid | UnitCell]) -> None:
    """Check that grids or rows have one metric, because values of different metrics are not averaged or compared.

    Raises:
        InputError: if not; the message names the metrics.
    """
    metrics = list(dict.fromkeys(one.metric for one in traced))
    if len(metrics) > 1:
        raise InputError(f"a figure shows one metric, but these traces have several: {', '.join(metrics)}; choose one")


def total_average(traced: Sequence[TraceGrid]) -> Average:
    """Average the total effects of the grids of one mediator and metric: the ATE, a scalar.

    Raises:
        InputError: if there is no grid.
    """
    return average([grid.total_effect for grid in traced])


def trace_averages(traced: Sequence[TraceGrid], *, scheme: Scheme = "rome") -> list[TraceAverage]:
    """Return the averages of every metric, mediator, bucket and layer, without buckets that no prompt has.

    Raises:
        InputError: as ``bucket_averages`` raises.
    """
    return [
        TraceAverage(
            mediator=mediator,
            metric=metric,
            bucket=one.bucket,
            layer_idx=one.layer_idx,
            average_indirect_effect=one.mean,
            low=one.low,
            high=one.high,
            n=one.n,
        )
        for metric, of_metric in by_part(traced, "metric").items()
        for mediator, of_one in by_part(of_metric, "mediator").items()
        for one in bucket_means_of(bucket_averages(of_one, scheme=scheme), scheme=scheme)
    ]


def trace_peaks(rows: Iterable[TraceCell]) -> list[TracePeak]:
    """Find the largest finite indirect effect of each fact, among all tokens and among the subject's tokens.

    For mediators that act on the clean run, it is the largest drop, that is, the lowest effect; for ranks, the reverse.

    Returns:
        Two peaks per fact, mediator and metric, in the order of the rows; of equal effects, the first. There is no peak
        where no effect is finite.

    >>> trace_peaks([])
    []
    """
    best: dict[tuple[str, str, str, str], TraceCell] = {}
    for row in rows:
        if not math.isfinite(row.indirect_effect):
            continue
        for among in (ALL, SUBJECT) if row.in_subject else (ALL,):
            key = (row.name, row.mediator, row.metric, among)
            direction = mediator_of(row.mediator).direction(row.metric)
            if key not in best or direction * row.indirect_effect > direction * best[key].indirect_effect:
                best[key] = row
    return [_peak(cell, among) for (*_, among), cell in best.items()]


def _peak(cell: TraceCell, among: str) -> TracePeak:
    return TracePeak(
        name=cell.name,
        mediator=cell.mediator,
        metric=cell.metric,
        among=among,
        method=cell.method,
        layer_idx=cell.layer_idx,
        token_idx=cell.token_idx,
        token=cell.token,
        bucket_rome=cell.bucket_rome,
        indirect_effect=cell.indirect_effect,
        total_effect=cell.total_effect,
    )


@dataclass(frozen=True)
class UnitMean:
    """The mean effect of one head or neuron on one metric over facts, at one kind of token."""

    mediator: str
    """``heads`` or ``neurons``."""
    metric: str
    """What is measured, see ``TraceSettings``."""
    bucket: str
    """``last_subject`` or ``last``."""
    layer_idx: int
    unit: int
    effects: tuple[float, ...]
    """One effect per fact; 0 for facts in which the unit was not run, because its estimate was small."""
    n: int
    """Number of facts in which it was run."""

    @property
    def mean(self) -> float:
        """The mean of ``effects``."""
        return sum(self.effects) / len(self.effects)


def unit_means(rows: Sequence[UnitCell]) -> list[UnitMean]:
    """Average the finite effects of heads and neurons over facts; those with the largest absolute means come first."""
    facts: dict[tuple[str, str], dict[str, None]] = {}
    found: dict[tuple[str, str, str, int, int], list[float]] = {}
    for row in rows:
        facts.setdefault((row.mediator, row.metric), {})[row.name] = None
        if math.isfinite(row.indirect_effect):
            key = (row.mediator, row.metric, row.bucket_rome, row.layer_idx, row.unit)
            found.setdefault(key, []).append(row.indirect_effect)
    means = [
        UnitMean(*key, (*effects, *[0.0] * (len(facts[key[:2]]) - len(effects))), len(effects))
        for key, effects in found.items()
    ]
    return sorted(means, key=lambda one: -abs(one.mean))


def estimated(traced: Sequence[TraceGrid]) -> str:
    """Return a phrase with the share of estimated cells, for a message; "" if all cells are exact.

    Cells at tokens before the runs differ, usually at the subject, are not counted: their effects are 0.
    """
    exact = [cell for grid in traced for cell in grid.exact[_first_counted(grid) :].flat]
    if all(exact):
        return ""
    share = 1 - sum(exact) / len(exact)
    if share == 1:
        return "all cells are estimates"
    return f"{share:.0%} of the cells that can have an effect are estimates"


def _first_counted(grid: TraceGrid) -> int:
    """Return the subject's first token, or an earlier one with an estimate, which a counterfactual can have."""
    estimates = np.flatnonzero(~grid.exact.all(axis=1))
    return min([grid.subject_span[0], *estimates[:1].tolist()])
