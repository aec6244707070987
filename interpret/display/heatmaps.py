"""Heat maps with headings, which the terminal, the page and the figure of every result draw.

An analysis makes ``Panel``s of its result in its own ``show.py``; nothing here knows an analysis. Shapes: R rows and C
columns of a heat map.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret.stats import Floats

Values = NDArray[np.floating[Any]]
"""Numbers of a heat map, of any precision."""
LEVELS = 20
"""Number of colour strengths on each side of zero."""
# Control characters are replaced by visible symbols: a terminal would execute them.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡"} | dict.fromkeys(range(128, 160), "�")
# In the name of a character that several tokens share, as 東 1/3, the space is not part of the text.
_SHARED = re.compile(r"(?<=[^\x00-\x7f])·(?=[1-4]/[2-4])")
_MARKS = _CONTROLS | str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})


@dataclass(frozen=True)
class Heading:
    """The heading of a row or a column."""

    text: str
    position: int | None = None
    """Position of the token in its text; None for what is not a token, such as a layer."""


@dataclass(frozen=True)
class Band:
    """A group of rows of a heat map, such as the source tokens."""

    name: str
    rows: Sequence[Heading]
    """[R]."""
    values: Values
    """[R, C], numbers that set the colours; NaN has no colour."""
    blank: NDArray[np.bool_] | None = None
    """[R, C], True for cells that do not exist, such as a token that has no score at a step; None if all exist."""
    texts: Sequence[Sequence[str]] | None = None
    """[R][C], what the cells say instead of their numbers, such as a predicted token; None for the numbers."""

    @property
    def cells(self) -> list[list[float | None]]:
        """[R][C], the values; None for cells that do not exist."""
        if self.blank is None:
            return self.values.tolist()
        rows = zip(self.values.tolist(), self.blank.tolist(), strict=True)
        return [[None if none else value for value, none in zip(*row, strict=True)] for row in rows]


@dataclass(frozen=True)
class Heatmap:
    """One heat map."""

    title: str
    down: str
    """What the rows are: ``token``, ``layer``, ``head`` or ``neuron``."""
    columns: Sequence[Heading]
    """[C]."""
    bands: Sequence[Band]
    across: str = "token"
    """What the columns are, in the same words."""
    foot: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Name -> [C]: values of the columns other than scores, such as probabilities; None where there is none."""
    step: Heading | None = None
    """The attributed token of the heat map; None if each column is an attributed token, or none is attributed."""
    compact: bool = False
    """Narrow cells with two digits, for many columns."""


@dataclass(frozen=True)
class SentencePiece:
    """One token of a sentence that is coloured by the scores of a heat map."""

    text: str
    row: int | None = None
    """The row of the heat map that scores it, counted over all bands; None for a token without scores."""
    column: int | None = None
    """The column of the heat map that the token is; None unless it is an attributed token."""
    value: float = math.nan
    """Its score in the first column; NaN if it has none."""


@dataclass(frozen=True)
class Panel:
    """The heat maps of one input, which share a scale of colours around 0."""

    prompt: str
    """The input, as a title."""
    grids: Sequence[Heatmap]
    continuation: str = ""
    """What follows the prompt; "" if nothing does."""
    sentence: Sequence[SentencePiece] = ()
    """The text with the scores of its tokens, for the first heat map; empty if single tokens have no scores."""
    name: str = ""
    """Its name among the inputs, such as ``known_12``; "" if it has none."""
    signed: bool = True
    """Whether its values can be negative; the scale of probabilities begins at 0."""

    @property
    def title(self) -> str:
        """The prompt, after the name."""
        return ": ".join(filter(None, [self.name, self.prompt]))

    @cached_property
    def _values(self) -> Floats:
        """All finite values, in one dimension."""
        found = [np.ravel(np.asarray(band.values, dtype=np.float64)) for grid in self.grids for band in grid.bands]
        flat = np.concatenate([np.zeros(0), *found])
        return flat[np.isfinite(flat)]

    @property
    def largest(self) -> float:
        """Largest absolute finite value; 0 if there are none."""
        return float(np.abs(self._values).max(initial=0.0))

    @property
    def lowest(self) -> float:
        """The lower end of the scale."""
        return -self.largest if self.signed else 0.0

    def number(self, value: float) -> str:
        """Return a number as a cell of a heat map says it."""
        return marked(value, self.largest) if self.signed else unsigned(value, self.largest)


def plain_headings(texts: Sequence[object]) -> list[Heading]:
    """Return headings without positions, such as those of layers."""
    return [Heading(str(text)) for text in texts]


def headings(tokens: Sequence[str]) -> list[Heading]:
    """Return the headings of the tokens of a text."""
    return [Heading(visible(token), position) for position, token in enumerate(tokens)]


def visible(token: str) -> str:
    """Return a token with visible spaces and line breaks.

    >>> visible(" Tower")
    '·Tower'
    >>> visible("東 1/3")
    '東 1/3'
    """
    return _SHARED.sub(" ", token.translate(_MARKS))


def readable(text: str) -> str:
    """Return a text for a heading: control characters visible, no spaces around it.

    >>> readable(" Paris")
    'Paris'
    """
    return text.translate(_MARKS).replace("·", " ").strip()


def level(value: float, largest: float) -> int:
    """Return the colour strength of a score, -LEVELS to LEVELS; 0 is no colour.

    >>> level(0.5, 1.0), level(-1.0, 1.0), level(float("nan"), 1.0)
    (10, -20, 0)
    """
    if math.isnan(value) or not largest:
        return 0
    return round(max(-1.0, min(1.0, value / largest)) * LEVELS)


def short(value: float, largest: float) -> str:
    """Return a signed number, with decimals for about three digits of ``largest``; empty for NaN.

    >>> short(-0.01234, 0.5), short(1234.5, 2000.0), short(2e-7, 3e-6), short(0.0, 1.0)
    ('−0.012', '+1234', '+2.0e−07', '0.00')
    """
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    if largest and not 1e-3 <= largest < 1e5:
        return f"{value:+.1e}".replace("-", "−")
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 2
    text = f"{value:+.{decimals}f}"
    return (text if text.strip("+-0.") else text[1:]).replace("-", "−")


def unsigned(value: float, largest: float) -> str:
    """Return a number that cannot be negative: ``marked`` without the sign.

    >>> unsigned(0.25, 1.0), unsigned(0.0, 0.94)
    ('0.25', '0')
    """
    return marked(value, largest).removeprefix("+") if value else "0"


def marked(value: float, largest: float) -> str:
    """Return the text of a score: ``short``, and ``NaN`` for a score that is NaN.

    >>> marked(float("nan"), 1.0), marked(0.5, 1.0)
    ('NaN', '+0.50')
    """
    return "NaN" if math.isnan(value) else short(value, largest)


def full(value: float) -> str:
    """Return a signed number with six significant digits.

    >>> full(-0.0123456789), full(float("nan"))
    ('−0.0123457', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    return f"{value:+.6g}".replace("-", "−")


def compact(value: float) -> str:
    """Return a signed number of a narrow cell: two decimals, without the zero before the point.

    >>> compact(0.123), compact(-0.5), compact(0.001), compact(12.34), compact(float("nan"))
    ('.12', '−.50', '0', '12.3', 'NaN')
    """
    if not math.isfinite(value):
        return marked(value, 0.0)
    if abs(value) < 0.005:
        return "0"
    text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
    return text.replace("0.", ".", 1).replace("-", "−") if abs(value) < 0.995 else text.replace("-", "−")


def small_probability(value: float) -> str:
    """Return a probability with three decimals.

    >>> small_probability(0.25), small_probability(0.0001), small_probability(0.0)
    ('0.250', '<0.001', '0')
    """
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.3f}" if value else "0"
