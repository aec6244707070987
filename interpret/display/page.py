"""The HTML page of a result: one file that loads no other files and is readable without scripts.

Numbers are text in the cells, so neither colour nor a script is needed to read them; ``page.js`` adds a readout of the
cell under the mouse, keyboard navigation, and the choice of an attributed token.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from html import escape

from interpret.display.heatmaps import LEVELS, Band, Heatmap, Panel, compact, full, level
from interpret.display.view import View
from interpret.pages.frame import page_pieces

MOST_CELLS = 8000
"""Most cells of the page of a result that a notebook displays by itself; about 60 bytes each."""


def page_of(view: View) -> Iterator[str]:
    """Yield the page of a result in pieces; one panel at a time is held in memory. All text is escaped."""
    return page_pieces(
        __package__,
        "page",
        more_style=shades(),
        view=view,
        title=view.title,
        summary=_summary,
        shade=shade,
        text=_text,
        said=_said,
    )


def framed(text: str, *, height: str = "36rem") -> str:
    """Return a page as an iframe without access to the document around it; neither's styles affect the other."""
    style = f"width:100%;height:{height};border:0;color-scheme:light dark"
    return (
        f'<div><iframe srcdoc="{escape(text)}" title="Result" sandbox="allow-scripts" style="{style}"></iframe></div>'
    )


def light(view: View) -> View:
    """Return a view with only as many panels as ``MOST_CELLS`` allows; its warning says what is left out."""
    kept: list[Panel] = []
    room = MOST_CELLS
    for panel in view.panels():
        room -= sum(band.values.size for grid in panel.grids for band in grid.bands)
        if room < 0:
            break
        kept.append(panel)
    if len(kept) == view.n_panels:
        return view
    left = f"{len(kept)} of {view.n_panels} are shown here; show() displays all, show(html=...) writes them to a file"
    warning = "; ".join(filter(None, [view.warning, left]))
    return replace(view, panels=lambda: iter(kept), n_panels=len(kept), warning=warning)


def shade(value: float, largest: float) -> str:
    """Return the CSS class of a cell: p1 to p20 for positive numbers, n1 to n20 for negative ones, or none."""
    strength = level(value, largest)
    return f"{'p' if strength > 0 else 'n'}{abs(strength)}" if strength else ""


def shades() -> str:
    """Return the CSS classes of ``shade``; the content security policy of the page forbids inline styles."""
    sides = {"p": "positive", "n": "negative"}
    return "".join(
        f".{side}{strength}{{background-color:rgb(var(--{name})/{strength / LEVELS:g})}}"
        for side, name in sides.items()
        for strength in range(1, LEVELS + 1)
    )


def _text(panel: Panel, grid: Heatmap, band: Band, row: int, column: int, value: float) -> str:
    """Return what a cell says."""
    if band.texts is not None:
        return band.texts[row][column]
    return compact(value) if grid.compact else panel.number(value)


def _said(panel: Panel, band: Band, row: int, column: int, value: float) -> str:
    """Return what the readout says of a cell: its number in full, after its text if it has one."""
    number = full(value) if panel.signed else full(value).removeprefix("+")
    if band.texts is None:
        return number
    return band.texts[row][column] + ("" if math.isnan(value) else f" ({number})")


def _summary(panel: Panel) -> str:
    """Return a panel in one line, for the list of panels."""
    prompt = panel.title if len(panel.title) <= 90 else f"{panel.title[:60]} … {panel.title[-29:]}"
    return f"{prompt} → {panel.continuation[:60]}" if panel.continuation else prompt
