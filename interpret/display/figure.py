"""The figure of one input of a result: its heat maps side by side, with one scale of colours."""

from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from interpret.display.heatmaps import Heading, Heatmap, Panel
from interpret.display.view import View
from interpret.drawing.palette import diverging, sequential
from interpret.drawing.panels import NO_TOKEN, Sheet, bar_ends, layers_below, shown, styled
from interpret.stats import Floats

_ROW, _CHARACTER = 0.18, 0.066
"""In inches: the height of a row, and the width of a character."""
_CELL, _NARROW = 0.5, 0.12
"""In inches: the width of a cell with a number in it, and of a cell of a heat map with many columns."""
_CLIPPED = 14
"""Maximum number of characters of a text in a cell, and of a heading of a column."""
_MOST_HEADINGS = 15
"""Maximum number of headings of many columns."""


@dataclass(frozen=True)
class Scale:
    """The colours of the numbers of a figure."""

    norm: Normalize
    colours: Colormap


def panel_figure(view: View, panel: Panel) -> Figure:
    """Draw the heat maps of one input; those of further attributed tokens below the first ones.

    Args:
        view: the result, for title and unit.
        panel: the input.
    """
    with styled():
        lines = _lines(panel)
        longest = max(map(len, lines))
        widths = [max(_width(line[n]) for line in lines if n < len(line)) for n in range(longest)]
        heights = [max(_height(grid) for grid in line) for line in lines]
        title = _title(view, panel)
        size = max(sum(widths) + 1.0, 4.6), sum(heights) + 0.5 + 0.16 * title.count("\n")
        figure = Sheet(figsize=size, layout="constrained")
        axes = figure.subplots(len(lines), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights)
        scale = Scale(Normalize(panel.lowest, panel.largest or 1e-6), diverging() if panel.signed else sequential())
        for row, line in zip(axes, lines, strict=True):
            for place, grid in zip(row, line, strict=False):
                _draw(place, grid, panel, scale)
            for place in row[len(line) :]:
                place.set_axis_off()
        bar = figure.colorbar(ScalarMappable(scale.norm, scale.colours), ax=axes, pad=0.015, aspect=30, fraction=0.05)
        bar.set_label("\n".join(wrap(shown(view.unit), int(sum(heights) / _CHARACTER))))
        bar_ends(bar, *_ends(panel), 0.0)
        figure.suptitle(title, fontsize=9)
    return figure


def _lines(panel: Panel) -> list[list[Heatmap]]:
    """Return the heat maps in lines: those of one attributed token that have the same number of rows."""
    found: dict[tuple[int | None, int], list[Heatmap]] = {}
    for grid in panel.grids:
        step = None if grid.step is None else grid.step.position
        found.setdefault((step, len(_rows(grid))), []).append(grid)
    return list(found.values())


def _ends(panel: Panel) -> tuple[float, float]:
    """Return the range of the colour bar: the smallest and the largest value, and 0."""
    values = [values[np.isfinite(values)] for grid in panel.grids for values in [_values(grid)]]
    flat = np.concatenate([np.zeros(1), *values])
    return float(flat.min()), float(flat.max())


def _values(grid: Heatmap) -> Floats:
    """Return the values of all bands below one another, [R, C]; NaN where there is no cell."""
    bands = [
        np.asarray(band.values, dtype=np.float64) if band.blank is None else np.where(band.blank, np.nan, band.values)
        for band in grid.bands
    ]
    return np.concatenate(bands) if bands else np.zeros((0, len(grid.columns)))


def _rows(grid: Heatmap) -> list[str]:
    return [_heading(row) for band in grid.bands for row in band.rows]


def _heading(heading: Heading) -> str:
    """Return a heading as matplotlib can draw it; a token has its own space instead of a mark."""
    return shown(_clipped(heading.text.replace("·", " ")))


def _clipped(text: str) -> str:
    return text if len(text) <= _CLIPPED else text[: _CLIPPED - 1] + "…"


def _cell(grid: Heatmap) -> float:
    """Return the width of a cell."""
    texts = [text for band in grid.bands for row in band.texts or () for text in row]
    return _NARROW if grid.compact else max(_CELL, _CHARACTER * min(max(map(len, texts), default=0), _CLIPPED) + 0.05)


def _turned(grid: Heatmap) -> bool:
    """Tell whether the headings of columns are too wide for their cells."""
    longest = max((len(_heading(one)) for one in grid.columns), default=0)
    return longest > 3 if grid.compact else _CHARACTER * longest > _cell(grid)


def _width(grid: Heatmap) -> float:
    beside = _CHARACTER * max(map(len, _rows(grid)), default=1) + 0.4
    return max(_cell(grid) * len(grid.columns) + beside, 1.9)


def _height(grid: Heatmap) -> float:
    below = _CHARACTER * max(len(_heading(one)) for one in grid.columns) if _turned(grid) else 0.15
    return _ROW * max(len(_rows(grid)), 1) + below + 0.6


def _draw(place: Axes, grid: Heatmap, panel: Panel, scale: Scale) -> None:
    values, rows = _values(grid), _rows(grid)
    about = "" if grid.step is None else f"{grid.step.text.replace('·', ' ').strip()}: "
    place.set_title("\n".join(wrap(shown(about + grid.title), int(_width(grid) / _CHARACTER))))
    place.tick_params(length=0)
    place.set_xlabel(grid.across)
    if values.size:
        if np.isnan(values).any() and not any(band.texts for band in grid.bands):
            place.patch.set(**NO_TOKEN)
        place.imshow(values, cmap=scale.colours, norm=scale.norm, aspect="auto", interpolation="nearest")
    place.set_yticks(range(len(rows)), rows)
    place.set_ylabel(grid.down)
    columns = [_heading(one) for one in grid.columns]
    if grid.across == "layer":
        layers_below(place, len(columns))
    else:
        step = -(-len(columns) // _MOST_HEADINGS) if grid.compact else 1
        place.set_xticks(range(0, len(columns), step), columns[::step], rotation=90 if _turned(grid) else 0)
    if not grid.compact:
        _write(place, grid, panel, scale)


def _write(place: Axes, grid: Heatmap, panel: Panel, scale: Scale) -> None:
    """Write the texts or numbers into the cells, white on dark ones."""
    texts = [text for band in grid.bands for text in band.texts or [[""] * len(grid.columns)] * len(band.rows)]
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5}
    for (row, column), value in np.ndenumerate(_values(grid)):
        text = texts[row][column].replace("·", " ").strip()
        text = text or ("" if np.isnan(value) else panel.number(value).removeprefix("+"))
        if text:
            red, green, blue, _ = scale.colours(scale.norm(float(np.nan_to_num(value))))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            place.text(column, row, shown(_clipped(text)), color="white" if dark else "black", **style)


def _title(view: View, panel: Panel) -> str:
    """Return the title of the result, and below it the input and the count of numbers that are not finite."""
    prompt = panel.title if len(panel.title) <= 70 else f"{panel.title[:40]} … {panel.title[-29:]}"
    follows = f" → {panel.continuation}" if panel.continuation else ""
    return "\n".join(shown(line) for line in (view.title, prompt + follows, view.warning) if line)
