"""Insertion and deletion curves: how an attributed value changes as tokens are masked in the order of their scores.

Petsiuk et al. 2018 (arXiv:1806.07421), section 3, over tokens or groups. Shapes: F features of a step that may be
masked, R rankings of them, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interpret.attribution.methods.masked_texts import masked_values
from interpret.attribution.methods.masking import masked_tokens
from interpret.attribution.steps.step import Baseline, Step
from interpret.stats import Floats


@dataclass(frozen=True)
class Curves:
    """The curves of one ranking; the value is in the unit of the attributed function."""

    deletion: Floats
    """[F + 1], the value after the k features with the highest scores are masked, k = 0 to F."""
    insertion: Floats
    """[F + 1], the value after they are put into the text in which all F are masked."""

    @property
    def deletion_area(self) -> float:
        """The mean height of the curve: the lower, the earlier what matters is masked."""
        return area(self.deletion)

    @property
    def insertion_area(self) -> float:
        """The mean height of the curve: the higher, the earlier what matters is there."""
        return area(self.insertion)


def mean_curves(found: Sequence[Curves]) -> Curves:
    """Return the mean of curves of equal length."""
    return Curves(np.mean([one.deletion for one in found], axis=0), np.mean([one.insertion for one in found], axis=0))


def area(curve: Floats) -> float:
    """Return the area under a curve over the share of features, 0 to 1, by the trapezoidal rule."""
    return float((curve[:-1] + curve[1:]).mean() / 2)


def ranking(scores: Floats) -> Floats:
    """Return the rank of each feature, 0 for the highest score, [F]; NaN is ranked last, ties keep the text's order."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks


def curves(steps: Sequence[Step], free: Tensor, rankings: Sequence[Floats], baseline: Baseline) -> list[Curves]:
    """Return the curves of each ranking; all masked texts are run side by side, equal ones once.

    Args:
        steps: steps whose values are added up: one step, or those of a whole answer.
        free: [F], indices of the features that may be masked.
        rankings: R arrays, [F], as ``ranking`` returns.
        baseline: the embedding of masked tokens, see ``Step.baseline``.
    """
    last, n = steps[-1], len(free)
    ranks = torch.as_tensor(np.stack(rankings))[:, None]  # [R, 1, F]
    among_first = ranks < torch.arange(n + 1)[:, None]  # [R, F + 1, F]
    masked = torch.stack([among_first, ~among_first])  # [2, R, F + 1, F]: of deletion and insertion
    tokens = masked_tokens(masked.flatten(0, 2), last.features[free])
    found = masked_values(steps, tokens, last.baseline(baseline)).sum(1).view(masked.shape[:3]).numpy()
    return [Curves(deletion, insertion) for deletion, insertion in zip(*found, strict=True)]
