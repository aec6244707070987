"""How far the methods agree on a fact, and on many facts: rank correlations over cells, and whether peaks coincide."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from interpret.factpages.grids import AMONG, COMPARED, FactGrids, Peak, peak
from interpret.stats import Average, average, rank_correlation

Verdict = Literal["agree", "agree in part", "disagree", "contradict each other", "cannot be compared"]
AGREE, IN_PART = 0.7, 0.3
"""Rank correlations from which methods agree, and agree in part; below ``-IN_PART`` they contradict each other."""
PAIRS = tuple(combinations(COMPARED, 2))
"""The pairs of methods that are compared."""


@dataclass(frozen=True)
class Agreement:
    """How far two methods agree on one fact."""

    first: str
    """A method of ``COMPARED``."""
    second: str
    """Another one."""
    among: str
    """The tokens that are compared, one of ``AMONG``."""
    correlation: float
    """Spearman's rank correlation of their scores over cells, -1 to 1; NaN if one of them is constant."""
    n_cells: int
    """Number of cells at which both scores are finite."""
    first_peak: Peak | None
    """The largest score of the first method; None if none is finite."""
    second_peak: Peak | None
    """That of the second."""

    @property
    def verdict(self) -> Verdict:
        """The correlation in words."""
        return verdict_of(self.correlation)

    @property
    def same_peak(self) -> bool:
        """Whether both peaks are the same cell."""
        return self.same_token and self.layers_apart == 0

    @property
    def same_token(self) -> bool:
        """Whether both peaks are at the same token."""
        one, other = self.first_peak, self.second_peak
        return one is not None and other is not None and one.token == other.token

    @property
    def layers_apart(self) -> int | None:
        """Number of layers between the peaks; None if there is none of a method."""
        one, other = self.first_peak, self.second_peak
        return None if one is None or other is None else abs(one.layer - other.layer)


def verdict_of(correlation: float) -> Verdict:
    """Return a rank correlation in words.

    >>> verdict_of(0.8), verdict_of(0.1), verdict_of(-0.5)
    ('agree', 'disagree', 'contradict each other')
    """
    if not np.isfinite(correlation):
        return "cannot be compared"
    if correlation <= -IN_PART:
        return "contradict each other"
    return "agree" if correlation >= AGREE else "agree in part" if correlation >= IN_PART else "disagree"


def agreements(grids: FactGrids) -> list[Agreement]:
    """Return the agreement of every pair of methods, among all compared tokens, then among those of the subject."""
    return [_agreement(grids, *pair, among) for among in AMONG for pair in PAIRS]


def _agreement(grids: FactGrids, first: str, second: str, among: str) -> Agreement:
    rows = grids.rows(among)
    one, other = (grids.scores[name][rows] for name in (first, second))
    return Agreement(
        first=first,
        second=second,
        among=among,
        correlation=rank_correlation(one, other),
        n_cells=int((np.isfinite(one) & np.isfinite(other)).sum()),
        first_peak=peak(grids, first, among),
        second_peak=peak(grids, second, among),
    )


@dataclass(frozen=True)
class MeanAgreement:
    """How far two methods agree on many facts, with bootstrap intervals over facts."""

    first: str
    second: str
    among: str
    correlation: Average
    """Of the rank correlations of single facts."""
    same_peak: Average
    """Of whether their peaks are the same cell: a share of the facts."""
    same_token: Average
    """Of whether their peaks are at the same token."""


def mean_agreements(facts: Sequence[Iterable[Agreement]]) -> list[MeanAgreement]:
    """Average the agreements of facts, in the order of ``agreements``.

    Raises:
        InputError: if there is no fact.
    """
    return [
        MeanAgreement(
            first=of_pair[0].first,
            second=of_pair[0].second,
            among=of_pair[0].among,
            correlation=average([one.correlation for one in of_pair]),
            same_peak=average([float(one.same_peak) for one in of_pair]),
            same_token=average([float(one.same_token) for one in of_pair]),
        )
        for of_pair in zip(*facts, strict=True)
    ]
