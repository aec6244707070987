"""Attributions as grids of numbers with headings: what a terminal and a page both draw.

Letters: R rows, C columns of a grid, G attributed tokens.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from interpret.attribution.result.aggregation import aggregate
from interpret.attribution.result.scores import Attributed, AttributionScores, ScoreArray

LEVELS = 20
"""Strengths of colour that are told apart, on each side of zero."""
# Control characters become their pictures: a terminal would obey them.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡"} | dict.fromkeys(range(128, 160), "�")
_MARKS = _CONTROLS | str.maketrans({"\u2581": "·", "Ġ": "·", " ": "·", "Ċ": "↵", "\n": "↵", "\t": "⇥"})


@dataclass(frozen=True)
class Heading:
    """Of a row or a column."""

    text: str
    position: int | None = None
    """Place of the token in its text; None for a layer."""


@dataclass(frozen=True)
class Band:
    """Rows of a grid that belong together."""

    name: str
    rows: list[Heading]
    """[R]."""
    values: ScoreArray
    """[R, C]; NaN where there is no score."""


@dataclass(frozen=True)
class Heatmap:
    """One heat map."""

    title: str
    down: str
    """What its rows are."""
    columns: list[Heading]
    bands: list[Band]
    foot: dict[str, ScoreArray]
    """Name -> [C]: numbers of the columns that are no attributions, such as probabilities."""
    step: Heading | None = None
    """The one attributed token the grid is about; None where each column is one."""


@dataclass(frozen=True)
class Panel:
    """One input."""

    prompt: str
    continuation: str
    grids: list[Heatmap]
    largest: float
    """Largest absolute score of its grids; 0 where there are none."""


def panels(attribution: AttributionScores) -> Iterator[Panel]:
    """Yield what there is to draw for each input, one at a time; a width D is summed."""
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
        continuation += f", against {plain_text(one.foil_tokens)}"
    return Panel(plain_text(prompt), continuation, grids, largest)


def _token_grid(one: Attributed) -> Heatmap:
    """Draw tokens down, attributed tokens across."""
    bands = []
    if one.source_tokens is not None and one.source_scores is not None:
        bands.append(Band("source", _headings(one.source_tokens), one.source_scores))
    if one.scores is not None:
        # The last attributed token and what follows it have no score anywhere.
        rows = _headings(one.tokens)[: max(one.stop - 1, 0)]
        bands.append(Band("text", rows, one.scores[: len(rows)]))
    across = _headings(one.tokens)[one.start : one.stop]
    return Heatmap("Score of each token for each written token", "token", across, bands, one.step_scores | one.details)


def _layer_grids(one: Attributed) -> list[Heatmap]:
    """Draw layers down, tokens across: a grid for each attributed token and site."""
    grids = []
    names = sorted(one.layer_scores, key=_site_and_layer)
    for step, column in enumerate(range(one.start, one.stop)):
        for site, group in groupby(names, key=lambda name: _site_and_layer(name)[0]):
            of_site = list(group)
            values = np.stack([one.layer_scores[name][:column, step] for name in of_site])  # [R, C]
            rows = [Heading(str(_site_and_layer(name)[1])) for name in of_site]
            across, about = _headings(one.tokens)[:column], _headings(one.tokens)[column]
            title = f"{site}: score of each layer at each token"
            grids.append(Heatmap(title, "layer", across, [Band(site, rows, values)], {}, about))
    return grids


def _site_and_layer(name: str) -> tuple[str, int]:
    """Split ``mlp_out.3``, so that layer 2 stands before layer 10."""
    site, _, layer = name.rpartition(".")
    return site, int(layer)


def _headings(tokens: tuple[str, ...]) -> list[Heading]:
    return [Heading(visible(token), position) for position, token in enumerate(tokens)]


def visible(token: str) -> str:
    """Return a token with its spaces and line ends seen, whatever mark its tokenizer has for them.

    >>> visible("ĠTower"), visible("▁Tower")
    ('·Tower', '·Tower')
    """
    return token.translate(_MARKS)


def plain_text(tokens: tuple[str, ...]) -> str:
    """Return tokens as a text to recognise an input by."""
    return "".join(tokens).translate(_MARKS).replace("·", " ").strip()


def level(value: float, largest: float) -> int:
    """Return how strong the colour of a score is: -LEVELS to LEVELS, 0 where it is none.

    >>> level(0.5, 1.0), level(-1.0, 1.0), level(float("nan"), 1.0)
    (10, -20, 0)
    """
    if math.isnan(value) or not largest:
        return 0
    return round(max(-1.0, min(1.0, value / largest)) * LEVELS)


def short(value: float, largest: float) -> str:
    """Return a signed number with about three digits of the largest one; nothing for NaN.

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


def full(value: float) -> str:
    """Return a signed number with six digits.

    >>> full(-0.0123456789)
    '−0.0123457'
    """
    return f"{value:+.6g}".replace("-", "−")


def title(attribution: AttributionScores) -> str:
    """Name an attribution in one line."""
    return f"Attribution of {attribution.info.attributed_fn} by {attribution.info.method}"


def facts(attribution: AttributionScores) -> Mapping[str, str]:
    """Return how an attribution was made, as names and readable values; what is empty is left out."""
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
