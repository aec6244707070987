"""What an attribution gives back: scores of tokens for each token they led to, and what can be done with them.

Letters: T tokens of a text (prompt and what follows it), G tokens that are attributed, D width of an embedding or
hidden state, S tokens of the source text of an encoder-decoder model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
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
    scores: Floats | None = field(repr=False)
    """[T, G] signed, [T, G, D] before the aggregation of gradient methods; NaN at and after the step's own token.
    None for layer methods, and where only the source was attributed."""
    layer_scores: dict[str, Floats] = field(default_factory=dict, repr=False)
    """Under each activation, such as ``mlp_out.3``: as ``scores``. Empty but for layer methods."""
    step_scores: dict[str, Floats] = field(default_factory=dict)
    """[G] under the name of each function that was asked for, and of the attributed one; units are in the info."""
    details: dict[str, Floats] = field(default_factory=dict)
    """[G] of what a method says about itself, such as the quality of a fit; NaN at steps it says nothing about."""
    foil_tokens: tuple[str, ...] | None = None
    """[G] what each attributed token is held against; None without a contrast."""
    source_tokens: tuple[str, ...] | None = None
    """[S]; None for decoder-only models, as the next two."""
    source_ids: tuple[int, ...] | None = None
    """[S]."""
    source_scores: Floats | None = field(default=None, repr=False)
    """[S, G] or [S, G, D]; no NaN."""

    def parts(self) -> dict[tuple[str, str], Floats]:
        """Return all arrays of scores, under (``"target"`` or ``"source"``, activation or "")."""
        found: dict[tuple[str, str], Floats] = {}
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
class Attribution:
    """The attribution of some inputs."""

    sequences: Sequence[Attributed]
    """A list, or one whose inputs are read from their files when they are asked for."""
    info: AttributionInfo

    def __repr__(self) -> str:
        """Tell how it was made, and of how many inputs; ``show`` shows the scores."""
        n = len(self.sequences)
        return f"Attribution({n} input{'s'[: n != 1]}, {self.info})"

    def aggregate(
        self,
        how: How = "sum",
        *,
        normalize: bool = False,
        spans: Spans | None = None,
        subwords: bool = False,
        minus: "Attribution | None" = None,
    ) -> "Attribution":
        """Return an attribution with one score a token and step; this one stays as it is.

        In this order, whatever the order of the arguments: D is reduced, ``minus`` is subtracted, tokens are merged,
        scores are normalised. Signs are kept but for ``l2``.

        Args:
            how: what becomes of D: the signed ``sum``, the ``mean``, or the ``l2`` norm (without a sign, Inseq's
                default). Scores that have no D stay as they are.
            normalize: divide each step by the sum of the absolute values of its scores, source and target together:
                shares, with their signs, that add up to 1 in absolute value. A step of zeros stays as it is.
            spans: for each input a list of ranges (first token, one past the last) that become one. Scores are added;
                where tokens that are attributed become one, their steps are added too, and step scores are merged
                as their function says. A span may not cross the end of the prompt, nor the limits of the steps.
            subwords: merge the tokens of each word, for tokenizers that mark the beginnings of words (``▁`` or
                ``Ġ``); also those of the source. Not together with ``spans``.
            minus: another attribution of the same tokens; its scores are subtracted after the same reduction.

        Raises:
            InputError: for an unknown ``how``, spans that overlap or do not fit, or a ``minus`` of other tokens.
        """
        from interpret.attribution.result.aggregation import aggregate

        return aggregate(self, how, normalize, spans, subwords, minus)

    def to_frame(self) -> pd.DataFrame:
        """Return a long table with one row a score; D is summed, and what a step does not see is left out.

        Columns: ``input`` (number of the input), ``side`` (``source`` or ``target``), ``activation`` (such as
        ``mlp_out.3``; "" for the inputs), ``step`` (from 0), ``step_position`` and ``step_token`` (of the token that
        is attributed), ``position`` and ``token`` (of the token the score is of), ``score``. Tokens that occur twice
        have two rows, told apart by their positions. A score that is NaN, as from float16 that overflowed, has a row.
        """
        from interpret.attribution.result.aggregation import to_frame

        return to_frame(self)

    def save(self, path: str | Path, *, overwrite: bool = False, compress: bool = False) -> Path:
        """Write this attribution to a file; see ``interpret.attribution.io.save``."""
        from interpret.attribution.result import files

        return files.save(self, path, overwrite=overwrite, compress=compress)

    @classmethod
    def load(cls, path: str | Path) -> "Attribution":
        """Read an attribution that ``save`` wrote; see ``interpret.attribution.io.load``."""
        from interpret.attribution.result import files

        return files.load(path)

    def show(self, *, html: str | Path | None = None, overwrite: bool = False) -> Path | None:
        """Show this attribution here, or write its page to a file; see ``interpret.attribution.show.show``."""
        from interpret.attribution.result.show import show

        return show(self, html=html, overwrite=overwrite)

    def to_html(self) -> str:
        """Return this attribution as one self-contained HTML page; see ``interpret.attribution.page.page``."""
        from interpret.attribution.result.page import page

        return page(self)


def side_by_side(steps: Sequence[Floats], n_tokens: int) -> Floats:
    """Put the scores of steps, [T_t] or [T_t, D] each, side by side: [T, G] or [T, G, D].

    Rows a step has no score for, those at and after its own token, are NaN.
    """
    whole = np.full((n_tokens, len(steps), *steps[0].shape[1:]), np.nan, dtype=steps[0].dtype)
    for step, of_tokens in enumerate(steps):
        whole[: len(of_tokens), step] = of_tokens
    return whole
