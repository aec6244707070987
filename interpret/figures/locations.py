"""Figures of facts located by attribution, from stored rows; the model is not needed.

The layout is that of the figures of causal traces, with one panel per site, so that both can be compared.
``locating.show`` draws one fact.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from interpret.drawing.panels import bucket_heatmaps, bucket_lines
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.locating.show import location_words
from interpret.locating.tables import LocationGrid, location_averages


def location_figure(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean attribution scores as heatmaps, buckets by layers, one panel per site, with a shared colour scale.

    Args:
        located: grids of any facts and sites.
        scheme: bucket scheme, ``rome`` or ``kt``.

    Raises:
        InputError: if there is no grid, or the grids differ in their number of layers.
    """
    return bucket_heatmaps(location_averages(located, scheme=scheme), SCHEMES[scheme], *location_words(located))


def location_lines(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean attribution scores over layers, one line per bucket with its 95% interval, one panel per site.

    Args:
        located: grids of any facts and sites.
        scheme: bucket scheme, ``rome`` or ``kt``.

    Raises:
        InputError: if there is no grid, or the grids differ in their number of layers.
    """
    return bucket_lines(location_averages(located, scheme=scheme), SCHEMES[scheme], *location_words(located))
