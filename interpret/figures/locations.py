"""Figures of facts located by attribution, from stored rows; the model is not needed.

The layout is that of the figures of causal traces, with one panel per site, so that both can be compared.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from interpret.drawing.panels import PanelWords, bucket_heatmaps, bucket_lines, shown, token_heatmaps
from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.facts.grids import not_finite, same_fact
from interpret.locating.tables import LocationGrid, location_averages

SITE_LABELS = {"resid_post": "layer output", "attn_out": "attention", "mlp_out": "MLP"}


def location_figure(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean attribution scores as heatmaps, buckets by layers, one panel per site, with a shared colour scale.

    Args:
        located: grids of any facts and sites.
        scheme: bucket scheme, ``rome`` or ``kt``.

    Raises:
        InputError: if there is no grid, or the grids differ in their number of layers.
    """
    return bucket_heatmaps(location_averages(located, scheme=scheme), SCHEMES[scheme], *_location_words(located))


def location_lines(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean attribution scores over layers, one line per bucket with its 95% interval, one panel per site.

    Args:
        located: grids of any facts and sites.
        scheme: bucket scheme, ``rome`` or ``kt``.

    Raises:
        InputError: if there is no grid, or the grids differ in their number of layers.
    """
    return bucket_lines(location_averages(located, scheme=scheme), SCHEMES[scheme], *_location_words(located))


def located_fact_figure(located: Sequence[LocationGrid]) -> Figure:
    """Draw one fact's scores as heatmaps, T tokens by L layers, one panel per site, with a shared colour scale.

    Tokens of the subject are marked with a star.

    Args:
        located: the grids of one fact.

    Raises:
        InputError: if there is no grid, or the grids belong to several facts.
    """
    first, (words, _) = same_fact(located), _location_words(located)
    bad = not_finite(located)
    title = f"{first.name}: attribution of {shown(first.answer).strip()}; (*) marks the subject"
    title += f"\n{bad}" if bad else ""
    panels = {words.titles[grid.site]: grid.effects for grid in located}
    return token_heatmaps(first.tokens, range(*first.subject_span), panels, centre=0.0, unit=words.unit, title=title)


def _location_words(located: Sequence[LocationGrid]) -> tuple[PanelWords, str]:
    """Return the titles, unit and headline of a figure of attribution scores."""
    if not located:
        raise InputError("no scores to draw: located is empty")
    function = located[0].attributed_fn
    unit = "p(answer) - p(foil)" if function == "contrast_prob_diff" else function
    n = len({grid.name for grid in located})
    words = not_finite(located)
    headline = f"Gradient x activation of {unit}\nmean over n={n} fact{'s'[: n != 1]}" + (f"; {words}" if words else "")
    return PanelWords(SITE_LABELS, f"score ({unit})"), headline
