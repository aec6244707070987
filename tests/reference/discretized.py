"""Discretized integrated gradients by plain loops in float64: Sanyal & Ren 2021 (arXiv:2108.13654), section 3."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def lies_between(value: float, one: float, other: float) -> bool:
    return min(one, other) <= value <= max(one, other)


def monotonic(anchor: np.ndarray, here: np.ndarray, end: np.ndarray, m: int) -> np.ndarray:
    """Change the dimensions of an anchor that do not lie between a point and the baseline."""
    return np.array(
        [a if lies_between(a, h, e) else h - (h - e) / m for a, h, e in zip(anchor, here, end, strict=True)]
    )


def next_anchor(
    table: np.ndarray, word: int, end: np.ndarray, on_path: list[int], m: int, strategy: str, k: int
) -> int | None:
    """Return the anchor that follows a word: the best of its nearest neighbours; None if there is none."""
    others = sorted((w for w in range(len(table)) if w != word), key=lambda w: math.dist(table[w], table[word]))[:k]
    costs = {}
    for other in others:
        if other in on_path or (table[other] == end).all():
            continue
        if strategy == "greedy":
            costs[other] = math.dist(table[other], monotonic(table[other], table[word], end, m))
        else:
            costs[other] = -sum(map(lies_between, table[other], table[word], end))
    return min(costs, key=lambda w: costs[w]) if costs else None


def path_of(table: np.ndarray, word: int, end: np.ndarray, m: int, strategy: str, k: int) -> np.ndarray:
    """Return the m + 1 points from the baseline to a word, [m + 1, D]."""
    points, on_path = [table[word]], [word]
    arrived = bool((table[word] == end).all())
    for _ in range(m - 1):
        anchor = None if arrived else next_anchor(table, on_path[-1], end, on_path, m, strategy, k)
        arrived = anchor is None
        points.append(end if anchor is None else monotonic(table[anchor], points[-1], end, m))
        on_path += [] if anchor is None else [anchor]
    return np.array([*points, end][::-1])


def discretized_gradients(value: Callable[[Tensor], Tensor], points: np.ndarray) -> np.ndarray:
    """Return the sum over the points of gradient times the move to the next point, [m + 1, T, D] -> [T, D].

    Args:
        value: a differentiable function of embeddings, [1, T, D] -> [1].
        points: the points from the baseline to the text.
    """
    total = np.zeros(points.shape[1:])
    for here, after in zip(points, points[1:], strict=False):
        x = torch.tensor(here[None], dtype=torch.float32, requires_grad=True)
        (slope,) = torch.autograd.grad(value(x).sum(), x)
        total += slope[0].double().numpy() * (after - here)
    return total
