"""The page of an attribution: one HTML file that loads nothing, and reads without scripts too.

Numbers stand in the cells as text, so that neither colour nor a script is needed to read them; ``page.js`` adds the
reader's place in the grid, the keyboard, and a choice among many attributed tokens.
"""

import math
from collections.abc import Iterator
from functools import partial

from interpret.attribution.result.heatmap import LEVELS, Panel, facts, full, level, panels, short, title
from interpret.attribution.result.scores import AttributionScores
from interpret.pages.frame import page_pieces


def page(attribution: AttributionScores) -> str:
    """Return an attribution as one self-contained HTML page; about 40 bytes a score.

    Args:
        attribution: shown input by input: tokens down and attributed tokens across, of layer methods layers down and
            tokens across for each attributed token. A width D is summed. All text is escaped.
    """
    return "".join(pieces(attribution))


def pieces(attribution: AttributionScores) -> Iterator[str]:
    """Yield the page in pieces: no more than one input is held of an attribution that is read from a disk."""
    return page_pieces(
        __package__,
        "page",
        more_style=_shades(),
        title=title(attribution),
        scale="blue: above zero, orange: below zero",
        facts=facts(attribution),
        n_inputs=len(attribution.sequences),
        panels=partial(panels, attribution),
        summary=_summary,
        short=short,
        full=full,
        shade=shade,
        is_missing=math.isnan,
    )


def shade(value: float, largest: float) -> str:
    """Return the class of a cell: p1 to p20 above zero, n1 to n20 below, nothing where there is no colour."""
    strength = level(value, largest)
    return f"{'p' if strength > 0 else 'n'}{abs(strength)}" if strength else ""


def _shades() -> str:
    """Write the classes of ``shade``: the page allows no style in its elements."""
    sides = {"p": "positive", "n": "negative"}
    return "".join(
        f".{side}{strength}{{background-color:rgb(var(--{name})/{strength / LEVELS:g})}}"
        for side, name in sides.items()
        for strength in range(1, LEVELS + 1)
    )


def _summary(panel: Panel) -> str:
    """Name an input in one line."""
    prompt = panel.prompt if len(panel.prompt) <= 90 else f"{panel.prompt[:60]} … {panel.prompt[-29:]}"
    return f"{prompt} → {panel.continuation[:60]}"
