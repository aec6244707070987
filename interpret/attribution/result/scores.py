"""Data classes of attributions: the scores, and how they were made.

Shapes: T tokens of a text (prompt and continuation), G attributed tokens, D hidden width, S tokens of the source text
of an encoder-decoder model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret.finite import Tally

ScoreArray = NDArray[np.floating[Any]]

Spans = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Attributed:
    """The attribution of one input."""

    tokens: tuple[str, ...]
    """[T] texts, see ``interpret.prompts.spelling.pieces``; merged tokens are joined."""
    token_ids: tuple[int, ...]
    """[T]; -1 for a merged span."""
    words: tuple[int, ...]
    """[T], number of the word that a token belongs to, see ``interpret.prompts.spelling.words``."""
    n_prompt: int
    """Number of prompt tokens, which come first."""
    start: int
    """Column of the first attributed token: step g is the token in column ``start + g``."""
    stop: int
    """One past the column of the last attributed token; G is ``stop - start``."""
    scores: ScoreArray | None = field(repr=False)
    """[T, G], signed; [T, G, D] for gradient methods before aggregation; NaN at and after the step's own token. None
    for layer methods, and if only the source was attributed."""
    layer_scores: dict[str, ScoreArray] = field(default_factory=dict, repr=False)
    """Activation name, such as ``mlp_out.3`` -> scores as in ``scores``. Empty except for layer methods."""
    step_scores: dict[str, ScoreArray] = field(default_factory=dict)
    """Function name -> [G], for the attributed function and each reported one; units are in ``AttributionInfo``."""
    details: dict[str, ScoreArray] = field(default_factory=dict)
    """Name -> [G], diagnostics of the method, such as the quality of a fit; NaN at steps without one."""
    foil_tokens: tuple[str, ...] | None = None
    """[G], the foil of each attributed token; None without a contrast."""
    source_tokens: tuple[str, ...] | None = None
    """[S]; None for decoder-only models, as are the next three."""
    source_ids: tuple[int, ...] | None = None
    """[S]."""
    source_words: tuple[int, ...] | None = None
    """[S], as ``words``."""
    source_scores: ScoreArray | None = field(default=None, repr=False)
    """[S, G] or [S, G, D]; no NaN."""

    def unscored(self) -> NDArray[np.bool_]:
        """Tell which tokens have no score at a step because they are its own token or later ones, [T, G]."""
        return np.arange(len(self.tokens))[:, None] >= np.arange(self.start, self.stop)[None, :]

    def tally(self) -> Tally:
        """Count the scores that are not finite, one for each token and step."""
        counted = Tally()
        for (side, _), values in self.parts().items():
            whole = values.sum(axis=-1) if values.ndim == 3 else values  # [T, G]
            counted.add(whole if side == "source" else whole[~self.unscored()])
        return counted

    def parts(self) -> dict[tuple[str, str], ScoreArray]:
        """Return all arrays of scores, by (``"target"`` or ``"source"``, activation or "")."""
        found: dict[tuple[str, str], ScoreArray] = {}
        if self.source_scores is not None:
            found["source", ""] = self.source_scores
        if self.scores is not None:
            found["target", ""] = self.scores
        return found | {("target", name): values for name, values in self.layer_scores.items()}


@dataclass(frozen=True)
class AttributionInfo:
    """How an attribution was made; only text, numbers and lists, so that it can be saved as JSON."""

    method: str
    attributed_fn: str
    unit: str
    """Unit of the attributed function."""
    contrast: str | None
    """``same_context`` or ``own_prefix``; None without a contrast."""
    step_units: dict[str, str]
    """Unit of each of ``step_scores``."""
    step_aggregates: dict[str, str]
    """How each of ``step_scores`` is combined when steps are merged: ``sum``, ``mean``, ``product``."""
    model: str
    tokenizer: str
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method and the functions, including defaults."""
    aggregation: tuple[str, ...] = ()
    """The aggregations done since, in order."""


@dataclass(frozen=True)
class AttributionScores:
    """The scores of one or several inputs, and how they were made: the data of an ``Attribution``."""

    sequences: Sequence[Attributed]
    """One entry per input: a list, or a sequence that reads each input from its file on access."""
    info: AttributionInfo


def side_by_side(steps: Sequence[ScoreArray], n_tokens: int) -> ScoreArray:
    """Stack the scores of steps, [T_t] or [T_t, D] each, as columns: [T, G] or [T, G, D].

    Tokens without a score, those at and after the step's own token, are NaN.
    """
    whole = np.full((n_tokens, len(steps), *steps[0].shape[1:]), np.nan, dtype=steps[0].dtype)
    for step, of_tokens in enumerate(steps):
        whole[: len(of_tokens), step] = of_tokens
    return whole
