"""Discretized integrated gradients: gradients along a path of words instead of a straight line.

Source: Sanyal & Ren 2021, "Discretized Integrated Gradients for Explaining Language Models" (arXiv:2108.13654).
Shapes: N distinct tokens of the text, K neighbours, V vocabulary, D hidden width, m steps of the path, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from interpret.anatomy import embedding_table
from interpret.attribution.methods.gradients import check_count
from interpret.attribution.steps.derivatives import summed_gradients, values
from interpret.attribution.steps.step import Baseline, Step
from interpret.errors import InputError, unknown

Strategy = Literal["greedy", "maxcount"]
_MOST_NUMBERS = 1 << 24
"""How many numbers a search holds at most, at N x K x D and at N x V."""


def discretized_integrated_gradients(
    steps: Sequence[Step],
    *,
    n_steps: int = 30,
    strategy: Strategy = "greedy",
    n_neighbors: int = 500,
    baseline: Baseline = "mean",
) -> list[Tensor]:
    """Return discretized integrated gradients: gradients at m points of a path, each times the move to the next point.

    Sanyal & Ren 2021, section 3: with points x_1 (the baseline) to x_{m+1} (the text), the score is the sum over k of
    gradient(x_k) * (x_{k+1} - x_k). The path of each token leads to the baseline by neighbouring words, see
    ``AnchorSearch.paths``. The scores of a step add up to the change of its value, except for a numerical error, the
    step's detail ``delta``: it is larger than that of ``integrated_gradients``, because the points cannot be chosen
    freely.

    Args:
        steps: steps of one text; all read the same points.
        n_steps: m, the number of points at which gradients are taken.
        strategy: how the next word is chosen: ``greedy``, the nearest to the path; ``maxcount``, the one of which most
            dimensions lie on the way to the baseline.
        n_neighbors: K, the number of neighbours of a word among which the next one is chosen.
        baseline: the end of the path, see ``Step.baseline``. Not ``zero`` by default, because a gradient is taken at
            the baseline itself, and RMSNorm has no useful one at zero.

    Returns:
        Scores, [T, D] for each step.

    Raises:
        InputError: for ``n_steps`` or ``n_neighbors`` below 1, an unknown strategy, or an unknown baseline.
    """
    check_count("n_steps", n_steps)
    check_count("n_neighbors", n_neighbors)
    if strategy not in get_args(Strategy):
        raise InputError(unknown("strategy", strategy, get_args(Strategy)))
    x, start = steps[-1].embeddings, steps[-1].baseline(baseline)
    words = torch.tensor(steps[-1].ids, device=x.device)
    distinct, places = words.unique(return_inverse=True)
    table = embedding_table(steps[-1].model).float()
    free = int(steps[-1].features.any(0).nonzero()[0])  # the baseline is the same at all tokens that are not kept
    search = AnchorSearch(table, start[0, free].float(), n_steps, strategy, min(n_neighbors, len(table) - 1))
    points = search.paths(distinct)[:, places]  # [m + 1, T, D]
    points = torch.where(steps[-1].kept[:, None], x.to(points), points)
    moves = points.diff(dim=0)
    slopes = summed_gradients(steps, n_steps, lambda some: (points[:-1][some].to(x), moves[some]))
    for step, scores, (end, begin) in zip(steps, slopes, values(steps, torch.cat([x, start])), strict=True):
        step.details["delta"] = (scores.sum() - (end - begin)).item()
    return slopes


@dataclass(frozen=True)
class AnchorSearch:
    """The search for the words on the way from each word to a baseline."""

    table: Tensor
    """[V, D], the embeddings of all words."""
    end: Tensor
    """[D], the baseline."""
    n_steps: int
    strategy: Strategy
    n_neighbors: int

    @cached_property
    def half_squares(self) -> Tensor:
        """Half of the squared norm of each word, [V]."""
        return self.table.square().sum(dim=1) / 2

    def paths(self, words: Tensor) -> Tensor:
        """Return the points on the way from the baseline to each word, [N] -> [m + 1, N, D].

        From a word, the way leads to an anchor among its nearest neighbours that is not on the way yet, from there to
        an anchor among the neighbours of that, and so on. The point that stands for an anchor is the anchor itself
        where it lies between the point before and the baseline; in its other dimensions, the way leads on by 1 / m of
        the distance to the baseline ("monotonize", section 3.2). So the points are monotonic in every dimension. A
        word without a neighbour that could follow is followed by the baseline.
        """
        largest = max(self.n_neighbors * self.table.shape[1], len(self.table))
        together = words.split(max(1, _MOST_NUMBERS // largest))
        return torch.cat([self._paths(some) for some in together], dim=1)

    def _paths(self, words: Tensor) -> Tensor:
        points = [self.table[words]]
        is_end = (self.table == self.end).all(dim=1)  # [V]: no anchor is the baseline
        passed = is_end.repeat(len(words), 1)  # [N, V]
        for _ in range(self.n_steps - 1):
            passed.scatter_(1, words[:, None], True)
            words, stuck = self._anchors(words, passed)
            point = monotonized(self.table[words], points[-1], self.end, self.n_steps)
            points.append(torch.where(stuck[:, None], self.end, point))  # from the baseline, every way stays there
        points.append(self.end.expand_as(points[0]))
        return torch.stack(points[::-1])

    def _anchors(self, words: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the anchor that follows each word, [N], and for which words there is none, [N] bool."""
        here = self.table[words]
        # The squared distance is norm(here) ** 2 - 2 * nearness; a product is much faster than differences.
        nearness = here @ self.table.t() - self.half_squares  # [N, V]
        nearness.scatter_(1, words[:, None], -torch.inf)
        near = nearness.topk(self.n_neighbors, dim=1).indices  # [N, K]
        costs = self._costs(self.table[near], here[:, None]).masked_fill(passed.gather(1, near), torch.inf)
        cost, best = costs.min(dim=1)
        return near.gather(1, best[:, None])[:, 0], cost == torch.inf

    def _costs(self, anchors: Tensor, here: Tensor) -> Tensor:
        """Return by how much anchors are unsuited, [N, K, D] and [N, 1, D] -> [N, K]."""
        if self.strategy == "maxcount":
            return -is_between(anchors, here, self.end).sum(dim=-1).float()
        return (anchors - monotonized(anchors, here, self.end, self.n_steps)).norm(dim=-1)


def is_between(points: Tensor, here: Tensor, end: Tensor) -> Tensor:
    """Return in which dimensions points lie between two others, ends included; all broadcast, [..., D]."""
    return (points >= torch.minimum(here, end)) & (points <= torch.maximum(here, end))


def monotonized(anchors: Tensor, here: Tensor, end: Tensor, n_steps: int) -> Tensor:
    """Return anchors, moved onto the way from ``here`` to ``end`` in the dimensions in which they are not between."""
    return torch.where(is_between(anchors, here, end), anchors, here - (here - end) / n_steps)
