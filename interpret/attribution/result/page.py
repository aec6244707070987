"""The HTML page of an attribution: one file that loads no other files and is readable without scripts.

Scores are text in the cells, so neither colour nor a script is needed to read them; ``page.js`` adds a readout of the
selected score, keyboard navigation, and a menu of attributed tokens.
"""

from collections.abc import Iterator
from functools import partial

from interpret.attribution.result.heatmap import LEVELS, Panel, facts, full, level, marked, panels, short, title
from interpret.attribution.result.scores import AttributionScores
from interpret.finite import Tally
from interpret.pages.frame import page_pieces


def page(attribution: AttributionScores) -> str:
    """Return an attribution as one self-contained HTML page; about 40 bytes per score.

    Args:
        attribution: the attribution. For each input, rows are tokens and columns attributed tokens; for layer methods
            there is a grid for each attributed token, with layers as rows and tokens as columns. The embedding
            dimension is summed. All text is escaped.
    """
    return "".join(pieces(attribution))


def pieces(attribution: AttributionScores) -> Iterator[str]:
    """Yield the page in pieces; of an attribution that is read from disk, one input at a time is held in memory."""
    return page_pieces(
        __package__,
        "page",
        more_style=_shades(),
        title=title(attribution),
        scale="blue: positive, orange: negative",
        facts=facts(attribution),
        n_inputs=len(attribution.sequences),
        panels=partial(panels, attribution),
        summary=_summary,
        short=short,
        full=full,
        shade=shade,
        marked=marked,
        not_finite=partial(not_finite, attribution),
    )


def shade(value: float, largest: float) -> str:
    """Return the CSS class of a cell: p1 to p20 for positive scores, n1 to n20 for negative ones, or none."""
    strength = level(value, largest)
    return f"{'p' if strength > 0 else 'n'}{abs(strength)}" if strength else ""


def _shades() -> str:
    """Return the CSS classes of ``shade``; the content security policy of the page forbids inline styles."""
    sides = {"p": "positive", "n": "negative"}
    return "".join(
        f".{side}{strength}{{background-color:rgb(var(--{name})/{strength / LEVELS:g})}}"
        for side, name in sides.items()
        for strength in range(1, LEVELS + 1)
    )


def not_finite(attribution: AttributionScores) -> str:
    """Return a line that counts the scores that are not finite; "" if all are finite."""
    tally = Tally()
    for one in attribution.sequences:
        own = one.tally()
        tally = Tally(tally.bad + own.bad, tally.total + own.total)
    return tally.left_out("scores", "colour scales and normalisation")


def _summary(panel: Panel) -> str:
    """Return a summary of an input in one line."""
    prompt = panel.prompt if len(panel.prompt) <= 90 else f"{panel.prompt[:60]} … {panel.prompt[-29:]}"
    return f"{prompt} → {panel.continuation[:60]}"
