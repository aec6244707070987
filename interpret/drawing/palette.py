"""The colours of all figures, safe for colour-blind readers; pages have the same two hues in ``pages/base.css``.

Numbers on both sides of a centre: orange below, white at the centre, blue above. Numbers from 0 on: the blue half. So
blue always means more. Blue and orange differ for all common kinds of colour blindness, and in lightness from white
in print. Lines have Okabe and Ito's colours.
"""

from matplotlib.colors import Colormap, LinearSegmentedColormap

_NEGATIVE = ["#7a3b00", "#c9650f", "#fa8e3c", "#fdd2b0"]
_POSITIVE = ["#bdd6ff", "#5c9aff", "#1f62d6", "#0b2f7a"]
"""From the centre outwards; the second one and the third one of the negative side are the pages' hues."""
_CENTRE = "#ffffff"
POSITIVE, NEGATIVE = _POSITIVE[1], _NEGATIVE[2]
"""The hues of the pages, ``--positive`` and ``--negative`` in their light colours."""

OKABE_ITO = {
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "grey": "#999999",
    "black": "#000000",
}
"""Colours by name, of Okabe and Ito's palette."""

LINES = [
    (OKABE_ITO["blue"], "-"),
    (OKABE_ITO["vermilion"], (0, (5, 1.5))),
    (OKABE_ITO["green"], (0, (1, 1))),
    (OKABE_ITO["purple"], (0, (5, 1, 1, 1))),
    (OKABE_ITO["sky"], (0, (3, 1, 1, 1, 1, 1))),
    (OKABE_ITO["black"], (0, (8, 2))),
]
"""Colour and dashes of the curves of a panel, in their order; dashes distinguish them in black-and-white print."""


def diverging() -> Colormap:
    """Return the colours of numbers on both sides of a centre; what is not finite is transparent."""
    return _colours("orange_blue", [*_NEGATIVE, _CENTRE, *_POSITIVE])


def sequential() -> Colormap:
    """Return the colours of numbers from 0 on: the upper half of ``diverging``."""
    return _colours("white_blue", [_CENTRE, *_POSITIVE])


def _colours(name: str, colours: list[str]) -> Colormap:
    return LinearSegmentedColormap.from_list(name, colours).with_extremes(bad="none")
