"""What an attribution gives back: scores of tokens for each token they led to, and what can be done with them.

Letters: T tokens of a text (prompt and what follows it), G tokens that are attributed, D width of an embedding or
hidden state, S tokens of the source text of an encoder-decoder model.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interpret.attribution.result import aggregation, files, page, show
from interpret.attribution.result.scores import AttributionScores, How, Spans


@dataclass(frozen=True, repr=False)
class Attribution(AttributionScores):
    """The attribution of some inputs."""

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
        return aggregation.aggregate(self, how, normalize, spans, subwords, minus)

    def to_frame(self) -> pd.DataFrame:
        """Return a long table with one row a score; D is summed, and what a step does not see is left out.

        Columns: ``input`` (number of the input), ``side`` (``source`` or ``target``), ``activation`` (such as
        ``mlp_out.3``; "" for the inputs), ``step`` (from 0), ``step_position`` and ``step_token`` (of the token that
        is attributed), ``position`` and ``token`` (of the token the score is of), ``score``. Tokens that occur twice
        have two rows, told apart by their positions. A score that is NaN, as from float16 that overflowed, has a row.
        """
        return aggregation.to_frame(self)

    def save(self, path: str | Path, *, overwrite: bool = False, compress: bool = False) -> Path:
        """Write this attribution to a file; see ``interpret.attribution.result.files.save``."""
        return files.save(self, path, overwrite=overwrite, compress=compress)

    @classmethod
    def load(cls, path: str | Path) -> "Attribution":
        """Read an attribution that ``save`` wrote; see ``interpret.attribution.result.files.load``."""
        return cls(*files.load(path))

    def show(self, *, html: str | Path | None = None, overwrite: bool = False) -> Path | None:
        """Show this attribution here, or write its page to a file; see ``interpret.attribution.result.show.show``."""
        return show.show(self, html=html, overwrite=overwrite)

    def to_html(self) -> str:
        """Return this attribution as one self-contained HTML page; see ``interpret.attribution.result.page.page``."""
        return page.page(self)
