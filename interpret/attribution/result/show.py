"""Display attributions: coloured tables in a terminal, a page in a notebook or a file."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from interpret.attribution.result.heatmap import LEVELS, Band, Heading, Heatmap, Panel, level, marked, panels, title
from interpret.attribution.result.page import not_finite, page, pieces
from interpret.attribution.result.scores import AttributionScores
from interpret.errors import InputError
from interpret.storage.disk import replacing

_POSITIVE, _NEGATIVE = (34, 88, 196), (164, 76, 8)
_ZERO = (36, 38, 43)
"""Background of a zero score, set because the terminal's is unknown. White text is readable on all backgrounds here."""
_LONGEST = 18
"""Maximum number of characters of a heading."""
_NARROWEST = 7
"""Minimum width of a column, in characters."""


def show(attribution: AttributionScores, *, html: str | Path | None = None, overwrite: bool = False) -> Path | None:
    """Display an attribution as tables in a terminal or as a page in a notebook, or write the page to a file.

    Every score is shown with its sign. Rows are tokens and columns attributed tokens; for layer methods there is a
    table for each attributed token, with layers as rows and tokens as columns. The embedding dimension is summed.
    ``page`` returns the HTML as text.

    Args:
        attribution: the attribution.
        html: the file to write; nothing is displayed then. None: display.
        overwrite: replace an existing file.

    Returns:
        The path of the written file; None if none is written.

    Raises:
        InputError: if the file exists and ``overwrite`` is false.
        RunError: if the file cannot be written.
    """
    if html is not None:
        path = Path(html)
        if path.exists() and not overwrite:
            raise InputError(f"{path} already exists; give overwrite=True to replace it, or choose another name")
        with replacing(path) as file:
            for text in pieces(attribution):
                file.write(text.encode())
        return path
    console = Console()
    if console.is_jupyter:
        from IPython.display import HTML, display  # installed where notebooks are

        display(HTML(framed(page(attribution))))
    else:
        console.print(Tables(attribution))
    return None


def framed(text: str) -> str:
    """Return a page as an iframe, so that the styles of the page and of the notebook do not affect each other."""
    frame = f'<iframe srcdoc="{escape(text)}" title="Attribution" style="width:100%;height:36rem;border:0"></iframe>'
    return f"<div>{frame}</div>"


@dataclass(frozen=True)
class Tables:
    """An attribution as tables of the package rich; columns that do not fit the width go into further tables."""

    attribution: AttributionScores

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield headings and tables."""
        yield Text(f"{title(self.attribution)}, in: {self.attribution.info.unit}", style="bold")
        if words := not_finite(self.attribution):
            yield Text(words)
        for panel in panels(self.attribution):
            yield Text(f"\n{panel.prompt} → {panel.continuation}", style="bold")
            for grid in panel.grids:
                yield from _tables(grid, panel, options.max_width)


def _tables(grid: Heatmap, panel: Panel, width: int) -> Iterator[Table | Text]:
    about = "" if grid.step is None else f"Token {grid.step.position} {grid.step.text}: "
    yield Text(about + grid.title, style="dim")
    rows = [row for band in grid.bands for row in band.rows]
    beside = max((cell_len(_label(one)) for one in rows), default=0)
    beside = max(beside, len(grid.down), *map(len, grid.foot), *(len(band.name) for band in grid.bands), 0)
    for columns in _fitting([max(_NARROWEST, cell_len(_label(one))) for one in grid.columns], width - beside - 1):
        yield _table(grid, panel, columns)


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
    for column in grid.columns[columns]:
        table.add_column(Text(_label(column)), justify="right", no_wrap=True, min_width=_NARROWEST)
    for band in grid.bands:
        if len(grid.bands) > 1:
            table.add_row(Text(band.name, style="dim"))
        _add_rows(table, band, panel.largest, columns)
    for name, values in grid.foot.items():
        table.add_row(Text(name, style="dim"), *(Text(_plain(value), style="dim") for value in values[columns]))
    return table


def _add_rows(table: Table, band: Band, largest: float, columns: slice) -> None:
    for row, values in zip(band.rows, band.cells, strict=True):
        table.add_row(Text(_label(row)), *(_cell(value, largest) for value in values[columns]))


def _cell(value: float | None, largest: float) -> Text:
    return Text("") if value is None else Text(marked(value, largest), style=_style(value, largest))


def _style(value: float, largest: float) -> str:
    """Return the style of a cell: white text on a background as strong as the score; empty for NaN."""
    if math.isnan(value):
        return ""
    strength = level(value, largest)
    end, share = _POSITIVE if strength > 0 else _NEGATIVE, abs(strength) / LEVELS
    ground = (round(zero + share * (full - zero)) for zero, full in zip(_ZERO, end, strict=True))
    return "rgb(255,255,255) on rgb({},{},{})".format(*ground)


def _label(heading: Heading) -> str:
    text = heading.text if len(heading.text) <= _LONGEST else heading.text[: _LONGEST - 1] + "…"
    return text if heading.position is None else f"{heading.position} {text}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
