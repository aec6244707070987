"""Attributions as grids of numbers with headings, which both the terminal and the page draw.

Shapes: R rows and C columns of a grid.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret.attribution.result.aggregation import aggregate
from interpret.attribution.result.scores import Attributed, AttributionScores, ScoreArray
from interpret.prompts.spelling import join_pieces

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
    """Position of the token in its text; None for a layer."""


@dataclass(frozen=True)
class Band:
    """A group of rows of a grid, such as the source tokens."""

    name: str
    rows: list[Heading]
    """[R]."""
    values: ScoreArray
    """[R, C]."""
    blank: NDArray[np.bool_]
    """[R, C], True where a token has no score at a step; the value there is NaN."""

    @property
    def cells(self) -> list[list[float | None]]:
        """[R][C], the values; None where there is no score."""
        rows = zip(self.values.tolist(), self.blank.tolist(), strict=True)
        return [[None if none else value for value, none in zip(*row, strict=True)] for row in rows]


@dataclass(frozen=True)
class Heatmap:
    """One heat map."""

    title: str
    down: str
    """What the rows are: ``token`` or ``layer``."""
    columns: list[Heading]
    bands: list[Band]
    foot: dict[str, NDArray[Any]]
    """Name -> [C]: values of the columns other than scores, such as probabilities; None where there is none."""
    step: Heading | None = None
    """The attributed token of the grid; None if each column is an attributed token."""


@dataclass(frozen=True)
class Panel:
    """The heat maps of one input."""

    prompt: str
    continuation: str
    grids: list[Heatmap]
    largest: float
    """Largest absolute finite score of its grids; 0 if there are none."""


def panels(attribution: AttributionScores) -> Iterator[Panel]:
    """Yield the panel of each input, one at a time; the embedding dimension is summed."""
    for one in attribution.sequences:
        summed = aggregate(replace(attribution, sequences=[one]), "sum", False, None, False, None)
        yield from map(_panel, summed.sequences)


def _panel(one: Attributed) -> Panel:
    grids = _layer_grids(one) if one.layer_scores else [_token_grid(one)]
    sizes = [np.abs(band.values[np.isfinite(band.values)]) for grid in grids for band in grid.bands]
    largest = max((float(size.max()) for size in sizes if size.size), default=0.0)
    prompt = one.tokens[: one.n_prompt] if one.source_tokens is None else one.source_tokens
    continuation = plain_text(one.tokens[one.n_prompt :])
    if one.foil_tokens is not None:
        continuation += f" (foil: {plain_text(one.foil_tokens)})"
    return Panel(plain_text(prompt), continuation, grids, largest)


def _token_grid(one: Attributed) -> Heatmap:
    """Return a grid with tokens as rows and attributed tokens as columns."""
    bands = []
    if one.source_tokens is not None and one.source_scores is not None:
        bands.append(_full_band("source", _headings(one.source_tokens), one.source_scores))
    if one.scores is not None:
        # The last attributed token and those after it have no scores.
        rows = _headings(one.tokens)[: max(one.stop - 1, 0)]
        bands.append(Band("text", rows, one.scores[: len(rows)], one.unscored()[: len(rows)]))
    across = _headings(one.tokens)[one.start : one.stop]
    details = {name: _with_gaps(values) for name, values in one.details.items()}
    return Heatmap("Score of each token for each attributed token", "token", across, bands, one.step_scores | details)


def _with_gaps(values: ScoreArray) -> NDArray[Any]:
    """Return values with None in place of NaN, which marks steps without a value."""
    gaps = values.astype(object)
    gaps[np.isnan(values)] = None
    return gaps


def _full_band(name: str, rows: list[Heading], values: ScoreArray) -> Band:
    """Return a band in which every cell has a score."""
    return Band(name, rows, values, np.zeros(values.shape, dtype=bool))


def _layer_grids(one: Attributed) -> list[Heatmap]:
    """Return a grid for each attributed token and site, with layers as rows and tokens as columns."""
    grids = []
    names = sorted(one.layer_scores, key=_site_and_layer)
    for step, column in enumerate(range(one.start, one.stop)):
        for site, group in groupby(names, key=lambda name: _site_and_layer(name)[0]):
            of_site = list(group)
            values = np.stack([one.layer_scores[name][:column, step] for name in of_site])  # [R, C]
            rows = [Heading(str(_site_and_layer(name)[1])) for name in of_site]
            across, about = _headings(one.tokens)[:column], _headings(one.tokens)[column]
            title = f"{site}: score of each layer at each token"
            grids.append(Heatmap(title, "layer", across, [_full_band(site, rows, values)], {}, about))
    return grids


def _site_and_layer(name: str) -> tuple[str, int]:
    """Split ``mlp_out.3`` into site and layer number, so that layer 2 is sorted before layer 10."""
    site, _, layer = name.rpartition(".")
    return site, int(layer)


def _headings(tokens: tuple[str, ...]) -> list[Heading]:
    return [Heading(visible(token), position) for position, token in enumerate(tokens)]


def visible(token: str) -> str:
    """Return a token with visible spaces and line breaks.

    >>> visible(" Tower")
    '·Tower'
    >>> visible("東 1/3")
    '東 1/3'
    """
    return _SHARED.sub(" ", token.translate(_MARKS))


def plain_text(tokens: tuple[str, ...]) -> str:
    """Return tokens joined to plain text, for headings."""
    return join_pieces(tokens).translate(_MARKS).replace("·", " ").strip()


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


def title(attribution: AttributionScores) -> str:
    """Return a title of one line."""
    return f"Attribution of {attribution.info.attributed_fn} by {attribution.info.method}"


def facts(attribution: AttributionScores) -> Mapping[str, str]:
    """Return how an attribution was made, as names and readable values; empty values are left out."""
    info = attribution.info
    units = {f"unit of {name}": unit for name, unit in info.step_units.items()}
    options = {f"option {name}": str(value) for name, value in info.options.items()}
    named = {
        "method": info.method,
        "attributed function": info.attributed_fn,
        "contrast": info.contrast or "",
        "model": info.model,
        "tokenizer": info.tokenizer,
        "aggregated by": ", ".join(info.aggregation),
    }
    return {name: value for name, value in (named | units | options).items() if value}
