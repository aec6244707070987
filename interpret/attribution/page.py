"""The page of an attribution: one HTML file that loads nothing, and reads without scripts too.

Numbers stand in the cells as text, so that neither colour nor a script is needed to read them; ``page.js`` adds the
reader's place in the grid, the keyboard, and a choice among many attributed tokens.
"""

import base64
import hashlib
import math
from collections.abc import Iterator
from functools import partial
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from interpret.attribution.heat import LEVELS, Panel, facts, full, level, panels, short, title
from interpret.attribution.result import Attribution

_BUFFERED = 1000
"""Expressions of the template that are written at once."""


def page(attribution: Attribution) -> str:
    """Return an attribution as one self-contained HTML page; about 40 bytes a score.

    Args:
        attribution: shown input by input: tokens down and attributed tokens across, of layer methods layers down and
            tokens across for each attributed token. A width D is summed. All text is escaped.
    """
    return "".join(pieces(attribution))


def pieces(attribution: Attribution) -> Iterator[str]:
    """Yield the page in pieces: no more than one input is held of an attribution that is read from a disk."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"short": short, "full": full, "shade": shade, "is_missing": math.isnan}
    style, script = _file("page.css") + _shades(), _file("page.js")
    stream = environment.from_string(_file("page.html")).stream(
        title=title(attribution),
        scale="blue: above zero, orange: below zero",
        facts=facts(attribution),
        n_inputs=len(attribution.sequences),
        panels=partial(panels, attribution),
        summary=_summary,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    stream.enable_buffering(_BUFFERED)
    for text in stream:
        # A lone surrogate has no UTF-8; it becomes its escape.
        yield text.encode("utf-8", "backslashreplace").decode("utf-8")


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


def _hash(text: str) -> str:
    """Name a script or style by its content, as a content security policy does."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    """Read a file that lies beside this module."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
