"""Rows of a causal trace -> grids, averages and peaks: what tables and figures are made from, without the model.

``trace_grids`` puts the rows of each fact and mediator back into arrays; ``bucket_averages`` averages them, per prompt
first and then over prompts (AIE); ``trace_peaks`` tells where each fact has its own largest effect.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme, average_buckets
from interpret.records import EXACT, LocationCell, TraceAverage, TraceCell, TracePeak
from interpret.stats import Average, average

Floats = NDArray[np.float64]
C = TypeVar("C", TraceCell, LocationCell)
ALL, SUBJECT = "all", "subject"
"""Tokens among which a peak is looked for."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One number for each of T tokens and L layers of one fact."""

    name: str
    """The fact's."""
    answer: str
    """The text whose probability is read."""
    tokens: tuple[str, ...]
    """[T] texts."""
    subject_span: tuple[int, int]
    """First and one past the last token of the subject."""
    effects: Floats
    """[T, L], indirect effects of a trace, or scores of an attribution."""


@dataclass(frozen=True, kw_only=True)
class TraceGrid(Grid):
    """The trace of one fact by one mediator; its effects are indirect effects."""

    prompt: str
    """What the model read."""
    mediator: str
    """What was restored."""
    p_clean: float
    """Probability of the answer in the clean run."""
    p_corrupted: float
    """Its mean in the corrupted runs."""
    scores: Floats
    """[T, L], its mean with one state restored."""
    spread: Floats
    """[T, L], standard deviations of the effects over noise samples; NaN for a single one."""
    exact: NDArray[np.bool_]
    """[T, L], whether a cell is exact, or an estimate."""

    @property
    def total_effect(self) -> float:
        """TE, clean minus corrupted probability."""
        return self.p_clean - self.p_corrupted


def trace_grids(rows: Iterable[TraceCell]) -> list[TraceGrid]:
    """Put rows back into one grid a fact and mediator, in the order in which they first appear.

    Raises:
        InputError: if there are no rows, or a grid has a cell missing or twice.
    """
    return [_grid(*of_one) for of_one in tokens_by_layers(rows, "mediator")]


def tokens_by_layers(rows: Iterable[C], part: str) -> Iterator[tuple[list[C], tuple[int, int], tuple[int, int]]]:
    """Sort rows into the grids they came from, in the order in which those first appear.

    Args:
        rows: of any facts, in any order.
        part: the column that, with the fact's name, tells grids apart.

    Yields:
        The T * L cells of a grid, token by token; (T, L); first and one past the last token of the subject.

    Raises:
        InputError: if there are no rows, or a grid has a cell missing or twice, or no subject.
    """
    cells: dict[tuple[str, str], list[C]] = {}
    for row in rows:
        cells.setdefault((row.name, getattr(row, part)), []).append(row)
    if not cells:
        raise InputError("the table has no rows: no fact was done yet")
    for (name, of_part), of_one in cells.items():
        what = f"the grid of {name!r} by {of_part!r}"
        ordered = sorted(of_one, key=lambda cell: (cell.token_idx, cell.layer_idx))
        n_tokens, n_layers = ordered[-1].token_idx + 1, ordered[-1].layer_idx + 1
        places = [(cell.token_idx, cell.layer_idx) for cell in ordered]
        if places != [(token, layer) for token in range(n_tokens) for layer in range(n_layers)]:
            raise InputError(
                f"{what} has {len(places)} rows that are not each of {n_tokens} tokens by {n_layers} layers once"
            )
        subject = [cell.token_idx for cell in ordered if cell.in_subject]
        if not subject:
            raise InputError(f"{what} has no token of the subject")
        yield ordered, (n_tokens, n_layers), (subject[0], subject[-1] + 1)


def _grid(ordered: Sequence[TraceCell], shape: tuple[int, int], subject_span: tuple[int, int]) -> TraceGrid:
    """Put the cells of one fact and mediator into arrays."""
    first = ordered[0]
    stds = [np.nan if cell.effect_std is None else cell.effect_std for cell in ordered]
    return TraceGrid(
        name=first.name,
        prompt=first.prompt,
        answer=first.answer,
        mediator=first.mediator,
        tokens=tuple(cell.token for cell in ordered[:: shape[1]]),
        subject_span=subject_span,
        p_clean=first.p_clean,
        p_corrupted=first.p_corrupted,
        scores=np.array([cell.p_restored for cell in ordered]).reshape(shape),
        effects=np.array([cell.indirect_effect for cell in ordered]).reshape(shape),
        spread=np.array(stds).reshape(shape),
        exact=np.array([cell.method == EXACT for cell in ordered]).reshape(shape),
    )


def by_mediator(traced: Iterable[TraceGrid]) -> dict[str, list[TraceGrid]]:
    """Sort grids by mediator, in the order in which mediators first appear."""
    found: dict[str, list[TraceGrid]] = {}
    for grid in traced:
        found.setdefault(grid.mediator, []).append(grid)
    return found


def total_average(traced: Sequence[TraceGrid]) -> Average:
    """Average the total effects of grids of one mediator: the ATE, a number.

    Raises:
        InputError: if there is no grid.
    """
    return average([grid.total_effect for grid in traced])


def bucket_averages(grids: Sequence[Grid], *, scheme: Scheme = "rome") -> Average:
    """Average the effects of grids of one kind, bucket by bucket, [buckets, L]; of traces this is the AIE.

    Args:
        grids: traces by one mediator, or scores at one site.
        scheme: how tokens are sorted into buckets.

    Raises:
        InputError: if there is no grid, the scheme is unknown, or the grids differ in layers.
    """
    depths = sorted({grid.effects.shape[1] for grid in grids})
    if len(depths) > 1:
        raise InputError(f"grids of models with {' and '.join(map(str, depths))} layers have no average")
    return average_buckets([grid.effects for grid in grids], [grid.subject_span for grid in grids], scheme=scheme)


@dataclass(frozen=True)
class BucketPeak:
    """Where the average indirect effect of one bucket is largest."""

    bucket: str
    """One of ``SCHEMES``."""
    layer_idx: int
    """The layer of the peak."""
    mean: float
    """AIE there."""
    low: float
    """Its interval's lower end."""
    high: float
    """Its upper end."""
    n: int
    """Prompts that have a token of the bucket."""


def bucket_peaks(averages: Average, *, scheme: Scheme = "rome") -> list[BucketPeak]:
    """Tell the peak layer of each bucket, leaving out buckets of no prompt.

    Args:
        averages: [buckets, L], as ``bucket_averages`` returns.
        scheme: the one they were made with.
    """
    found = []
    for row, bucket in enumerate(SCHEMES[scheme]):
        if averages.n[row].any():
            layer = int(averages.mean[row].argmax())
            mean, low, high = (float(part[row, layer]) for part in (averages.mean, averages.low, averages.high))
            found.append(BucketPeak(bucket, layer, mean, low, high, int(averages.n[row, layer])))
    return found


def trace_averages(traced: Iterable[TraceGrid], *, scheme: Scheme = "rome") -> list[TraceAverage]:
    """Return the averages of every mediator, bucket and layer, leaving out buckets of no prompt.

    Raises:
        InputError: as ``bucket_averages``.
    """
    return [
        TraceAverage(
            mediator=mediator,
            bucket=bucket,
            layer_idx=layer,
            average_indirect_effect=float(found.mean[row, layer]),
            low=float(found.low[row, layer]),
            high=float(found.high[row, layer]),
            n=int(found.n[row, layer]),
        )
        for mediator, of_one in by_mediator(traced).items()
        for found in [bucket_averages(of_one, scheme=scheme)]
        for row, bucket in enumerate(SCHEMES[scheme])
        for layer in range(found.mean.shape[1])
        if found.n[row, layer]
    ]


def trace_peaks(rows: Iterable[TraceCell]) -> list[TracePeak]:
    """Tell where each fact's indirect effect is largest, among all tokens and among the subject's.

    Returns:
        Two peaks a fact and mediator, in the order of the rows; of equal effects the first.

    >>> trace_peaks([])
    []
    """
    best: dict[tuple[str, str, str], TraceCell] = {}
    for row in rows:
        for among in (ALL, SUBJECT) if row.in_subject else (ALL,):
            key = (row.name, row.mediator, among)
            if key not in best or row.indirect_effect > best[key].indirect_effect:
                best[key] = row
    return [_peak(cell, among) for (_, _, among), cell in best.items()]


def _peak(cell: TraceCell, among: str) -> TracePeak:
    return TracePeak(
        name=cell.name,
        mediator=cell.mediator,
        among=among,
        method=cell.method,
        layer_idx=cell.layer_idx,
        token_idx=cell.token_idx,
        token=cell.token,
        bucket_rome=cell.bucket_rome,
        indirect_effect=cell.indirect_effect,
        total_effect=cell.total_effect,
    )


def estimated(traced: Sequence[TraceGrid]) -> str:
    """Say how much of some grids is estimated; "" where every cell is exact."""
    exact = [cell for grid in traced for cell in grid.exact.flat]
    if all(exact):
        return ""
    share = 1 - sum(exact) / len(exact)
    return "all cells are estimates" if share == 1 else f"{share:.0%} of the cells are estimates"
