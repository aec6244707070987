"""The result of an attribution: scores of tokens for each attributed token, with aggregation, tables and display.

Shapes: T tokens of a text (prompt and continuation), G attributed tokens, D hidden width, S tokens of the source text
of an encoder-decoder model.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interpret.attribution.methods.registry import How
from interpret.attribution.result import aggregation, files
from interpret.attribution.result.scores import AttributionScores, Spans
from interpret.attribution.result.show import attribution_view
from interpret.display.shown import Shown
from interpret.display.view import View


@dataclass(frozen=True, repr=False)
class Attribution(AttributionScores, Shown):
    """The attribution of one or several inputs."""

    def __repr__(self) -> str:
        """Return the number of inputs and how the attribution was made; ``show`` displays the scores."""
        n = len(self.sequences)
        return f"Attribution({n} input{'s'[: n != 1]}, {self.info})"

    def aggregate(
        self,
        how: How | None = None,
        *,
        normalize: bool = False,
        spans: Spans | None = None,
        subwords: bool = False,
        minus: "Attribution | None" = None,
        align: bool = False,
    ) -> "Attribution":
        """Return an attribution with one score per token and step; this one is not changed.

        The order is fixed: D is reduced, ``minus`` is subtracted, tokens are merged, scores are normalised. Signs are
        kept except by ``l2``.

        Args:
            how: how the embedding dimension D is reduced: the signed ``sum``, the ``mean``, or the ``l2`` norm
                (unsigned, Inseq's default). By default the method's own: ``l2`` for ``saliency``, whose sum says
                nothing (0 for GPT-2), and ``sum`` for all others. Scores without D are not changed.
            normalize: divide the scores of each step by the sum of their absolute values, over source and target
                together and for each activation separately. Signs are kept; a step of zeros is not changed. Scores
                that are not finite are left out of the sum.
            spans: for each input a list of ranges (first token, one past the last) to merge. Scores are summed; if
                attributed tokens are merged, their steps are summed too, and step scores are combined as their
                function specifies. A sum is not finite if a score in it is not. A span must not cross the end of the
                prompt or a boundary of the attributed steps.
            subwords: merge the tokens of each word (see ``interpret.prompts.spelling.words``), also those of the
                source. Not together with ``spans``.
            minus: another attribution of the same tokens; its scores are subtracted after the same reduction.
            align: with ``minus`` of prompts that differ in words: words of both correspond in order, and those that
                differ are merged into one token, as ``doctor → nurse``, whose score is the difference of their sums. A
                word that only one prompt has counts as 0 in the other. The continuations must be the same.

        Raises:
            InputError: for an unknown ``how``, spans that overlap or do not fit, or a ``minus`` with other tokens, or,
                if ``align`` is true, with other continuations.
        """
        return aggregation.aggregate(self, how, normalize, spans, subwords, minus, align)

    def to_frame(self) -> pd.DataFrame:
        """Return a table in long format, one row per score; tokens from the attributed one on have no row.

        D is reduced as by ``aggregate()``.

        Columns: ``input`` (number of the input), ``side`` (``source`` or ``target``), ``activation`` (such as
        ``mlp_out.3``; "" for the inputs), ``step`` (from 0), ``step_position`` and ``step_token`` (the attributed
        token), ``position`` and ``token`` (the token that is scored), ``score``. A token that occurs twice has two
        rows, which differ in ``position``. A score that is NaN, for example after float16 overflow, has a row.
        """
        return aggregation.to_frame(self)

    def save(self, path: str | Path, *, overwrite: bool = False, compress: bool = False) -> Path:
        """Write this attribution to a file; see ``interpret.attribution.result.files.save``."""
        return files.save(self, path, overwrite=overwrite, compress=compress)

    @classmethod
    def load(cls, path: str | Path) -> "Attribution":
        """Read an attribution that ``save`` wrote; see ``interpret.attribution.result.files.load``."""
        return cls(*files.load(path))

    def view(self) -> View:
        """Return what is shown: each input's text coloured by its scores, and its heat maps."""
        return attribution_view(self)
