"""Scores of attributions, and how they were made: plain data, which the rest of this package works on.

Letters: T tokens of a text (prompt and what follows it), G tokens that are attributed, D width of an embedding or
hidden state, S tokens of the source text of an encoder-decoder model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ScoreArray = NDArray[np.floating[Any]]


How = Literal["sum", "l2", "mean"]


Spans = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Attributed:
    """One input."""

    tokens: tuple[str, ...]
    """[T] as the tokenizer writes them, with its marks of a word's beginning; of merged tokens, joined."""
    token_ids: tuple[int, ...]
    """[T]; -1 for a merged span."""
    n_prompt: int
    """The first so many tokens are the prompt."""
    start: int
    """Column of the first attributed token: step g is the token in column ``start + g``."""
    stop: int
    """One past the column of the last attributed token; G is ``stop - start``."""
    scores: ScoreArray | None = field(repr=False)
    """[T, G] signed, [T, G, D] before the aggregation of gradient methods; NaN at and after the step's own token.
    None for layer methods, and where only the source was attributed."""
    layer_scores: dict[str, ScoreArray] = field(default_factory=dict, repr=False)
    """Under each activation, such as ``mlp_out.3``: as ``scores``. Empty but for layer methods."""
    step_scores: dict[str, ScoreArray] = field(default_factory=dict)
    """[G] under the name of each function that was asked for, and of the attributed one; units are in the info."""
    details: dict[str, ScoreArray] = field(default_factory=dict)
    """[G] of what a method says about itself, such as the quality of a fit; NaN at steps it says nothing about."""
    foil_tokens: tuple[str, ...] | None = None
    """[G] what each attributed token is held against; None without a contrast."""
    source_tokens: tuple[str, ...] | None = None
    """[S]; None for decoder-only models, as the next two."""
    source_ids: tuple[int, ...] | None = None
    """[S]."""
    source_scores: ScoreArray | None = field(default=None, repr=False)
    """[S, G] or [S, G, D]; no NaN."""

    def parts(self) -> dict[tuple[str, str], ScoreArray]:
        """Return all arrays of scores, under (``"target"`` or ``"source"``, activation or "")."""
        found: dict[tuple[str, str], ScoreArray] = {}
        if self.source_scores is not None:
            found["source", ""] = self.source_scores
        if self.scores is not None:
            found["target", ""] = self.scores
        return found | {("target", name): values for name, values in self.layer_scores.items()}


@dataclass(frozen=True)
class AttributionInfo:
    """How an attribution was made; only text, numbers and lists, so that it can be saved."""

    method: str
    attributed_fn: str
    unit: str
    """Of the attributed function."""
    contrast: str | None
    """``same_context`` or ``own_prefix`` where a foil was read, else None."""
    step_units: dict[str, str]
    """Unit of each of ``step_scores``."""
    step_aggregates: dict[str, str]
    """How each of ``step_scores`` is merged where steps are: ``sum``, ``mean``, ``product``."""
    model: str
    tokenizer: str
    options: dict[str, Any] = field(default_factory=dict)
    """Those of the method and the functions, defaults included."""
    aggregation: tuple[str, ...] = ()
    """What was done since, in order."""


@dataclass(frozen=True)
class AttributionScores:
    """The scores of some inputs and how they were made: what an ``Attribution`` holds."""

    sequences: Sequence[Attributed]
    """A list, or one whose inputs are read from their files when they are asked for."""
    info: AttributionInfo


def side_by_side(steps: Sequence[ScoreArray], n_tokens: int) -> ScoreArray:
    """Put the scores of steps, [T_t] or [T_t, D] each, side by side: [T, G] or [T, G, D].

    Rows a step has no score for, those at and after its own token, are NaN.
    """
    whole = np.full((n_tokens, len(steps), *steps[0].shape[1:]), np.nan, dtype=steps[0].dtype)
    for step, of_tokens in enumerate(steps):
        whole[: len(of_tokens), step] = of_tokens
    return whole
