"""Results in a terminal: heat maps as coloured tables of the package rich."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from interpret.display.heatmaps import LEVELS, Band, Heading, Heatmap, Panel, compact, level
from interpret.display.view import View

_POSITIVE, _NEGATIVE = (34, 88, 196), (164, 76, 8)
_ZERO = (36, 38, 43)
"""Background of a zero, set because the terminal's is unknown. White text is readable on all backgrounds here."""
_LONGEST = 18
"""Maximum number of characters of a heading or of a text in a cell."""
_NARROWEST, _COMPACT = 7, 3
"""Minimum width of a column, in characters, and of a compact one."""


@dataclass(frozen=True)
class Tables:
    """A result as tables of the package rich; columns that do not fit the width go into further tables."""

    view: View

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield headings and tables."""
        yield Text(f"{self.view.title}, in: {self.view.unit}", style="bold")
        if self.view.warning:
            yield Text(self.view.warning)
        for panel in self.view.panels():
            follows = f" → {panel.continuation}" if panel.continuation else ""
            yield Text(f"\n{panel.title}{follows}", style="bold")
            for grid in panel.grids:
                yield from _tables(grid, panel, options.max_width)


def _tables(grid: Heatmap, panel: Panel, width: int) -> Iterator[Table | Text]:
    about = "" if grid.step is None else f"Token {grid.step.position} {grid.step.text}: "
    yield Text(about + grid.title, style="dim")
    rows = [row for band in grid.bands for row in band.rows]
    beside = max((cell_len(_label(one)) for one in rows), default=0)
    beside = max(beside, len(grid.down), *map(len, grid.foot), *(len(band.name) for band in grid.bands), 0)
    for columns in _fitting(_widths(grid), width - beside - 1):
        yield _table(grid, panel, columns)


def _widths(grid: Heatmap) -> list[int]:
    """Return the width of each column in characters."""
    widths = [max(_COMPACT if grid.compact else _NARROWEST, cell_len(_label(one))) for one in grid.columns]
    for band in grid.bands:
        for texts in band.texts or ():
            widths = [max(width, cell_len(_clipped(text))) for width, text in zip(widths, texts, strict=True)]
    return widths


def _fitting(widths: list[int], room: int) -> Iterator[slice]:
    """Split columns into groups that fit the width, each of at least one column."""
    first, used = 0, 0
    for column, width in enumerate(widths):
        if column > first and used + width + 1 > room:
            yield slice(first, column)
            first, used = column, 0
        used += width + 1
    yield slice(first, len(widths))


def _table(grid: Heatmap, panel: Panel, columns: slice) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column(grid.down, no_wrap=True)
    for column, width in zip(grid.columns[columns], _widths(grid)[columns], strict=True):
        table.add_column(Text(_label(column)), justify="right", no_wrap=True, min_width=width)
    for band in grid.bands:
        if len(grid.bands) > 1:
            table.add_row(Text(band.name, style="dim"))
        _add_rows(table, panel, grid, band, columns)
    for name, values in grid.foot.items():
        table.add_row(Text(name, style="dim"), *(Text(_plain(value), style="dim") for value in values[columns]))
    return table


def _add_rows(table: Table, panel: Panel, grid: Heatmap, band: Band, columns: slice) -> None:
    largest = panel.largest
    for number, (row, values) in enumerate(zip(band.rows, band.cells, strict=True)):
        texts = None if band.texts is None else band.texts[number][columns]
        cells = []
        for place, value in enumerate(values[columns]):
            if value is None:
                cells.append(Text(""))
                continue
            text = _clipped(texts[place]) if texts else compact(value) if grid.compact else panel.number(value)
            cells.append(Text(text, style=_style(value, largest)))
        table.add_row(Text(_label(row)), *cells)


def _style(value: float, largest: float) -> str:
    """Return the style of a cell: white text on a background as strong as the number; empty for NaN."""
    if math.isnan(value):
        return ""
    strength = level(value, largest)
    end, share = _POSITIVE if strength > 0 else _NEGATIVE, abs(strength) / LEVELS
    ground = (round(zero + share * (full - zero)) for zero, full in zip(_ZERO, end, strict=True))
    return "rgb(255,255,255) on rgb({},{},{})".format(*ground)


def _label(heading: Heading) -> str:
    text = _clipped(heading.text)
    return text if heading.position is None else f"{heading.position} {text}"


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
