"""The rows of one fact as grids of tokens by layers, and their peaks; no model is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from interpret.records import FactCell
from interpret.stats import Floats, largest

TRACED = ("hidden", "attn_severed", "mlp_severed")
"""The mediators that are traced."""
COMPARED: Mapping[str, str] = MappingProxyType(
    {"trace": "causal tracing", "attribution": "attribution", "lens": "the logit lens"}
)
"""The methods that are compared over cells -> what sentences call them."""
AMONG = ("all", "subject")
"""The tokens over which they are compared: those from the subject's first one on, or those of the subject.

Restoring a token before the subject changes nothing, so that tracing says nothing about it.
"""


@dataclass(frozen=True)
class FactGrids:
    """What the methods say of one fact: T tokens, L layers."""

    cells: Sequence[FactCell]
    """[T * L], ordered by token and layer."""
    tokens: tuple[str, ...]
    """[T]."""
    subject_span: tuple[int, int]
    """First and one past the last token of the subject."""
    scores: Mapping[str, Floats]
    """Method -> [T, L], the larger the more a cell supports the answer: indirect effect of the layer's output, its
    attribution, and minus the rank of the answer by the logit lens."""

    @classmethod
    def of(cls, cells: Sequence[FactCell]) -> "FactGrids":
        """Return the grids of the rows of one fact, ordered by token and layer."""
        n_layers = cells[-1].layer_idx + 1
        tokens = cells[::n_layers]
        subject = [cell.token_idx for cell in tokens if cell.in_subject]
        scores = {
            "trace": [cell.hidden for cell in cells],
            "attribution": [cell.attribution for cell in cells],
            "lens": [np.nan if cell.lens_rank is None else -cell.lens_rank for cell in cells],
        }
        return cls(
            cells,
            tuple(cell.token for cell in tokens),
            (subject[0], subject[-1] + 1),
            {name: np.array(values, dtype=np.float64).reshape(-1, n_layers) for name, values in scores.items()},
        )

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.cells) // len(self.tokens)

    def cell(self, token: int, layer: int) -> FactCell:
        """Return a row."""
        return self.cells[token * self.n_layers + layer]

    def rows(self, among: str) -> slice:
        """Return the tokens of one of ``AMONG``."""
        start, end = self.subject_span
        return slice(start, end if among == "subject" else len(self.tokens))


@dataclass(frozen=True)
class Peak:
    """The cell with the largest score of a method."""

    token: int
    layer: int
    score: float


def peak(grids: FactGrids, method: str, among: str) -> Peak | None:
    """Return the peak of a method among some tokens, the first of equal ones; None if no score is finite."""
    rows = grids.rows(among)
    scores = grids.scores[method][rows]
    place = largest(scores)
    token, layer = divmod(place, grids.n_layers)
    score = float(scores[token, layer])
    return Peak(rows.start + token, layer, score) if np.isfinite(score) else None
