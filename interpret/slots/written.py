"""A greedily generated text with the probability of each token, and how its tokens are chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Written:
    """A greedily generated text: G tokens, without the end-of-text token."""

    ids: list[int]
    """[G] token ids."""
    probabilities: list[float]
    """[G], probability of each token given the tokens before it. NaN ends a text: there is no most likely token."""


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the id of each row's most likely token, [R, V] -> [R], and the id with its probability, [R, 2].

    Both numbers are in one tensor, so that reading them waits once for the device; float32 holds all ids exactly.
    """
    top, token = logits.max(-1)
    p = (top - logits.logsumexp(-1)).exp()
    return token, torch.stack([token.to(p.dtype), p], dim=1)
