"""Figures of facts located by attribution, from stored rows alone: the model is not needed.

They are drawn as causal traces are, one panel per site, so that the two can be compared.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from interpret.drawing.panels import PanelWords, bucket_heatmaps, bucket_lines, shown, token_heatmaps
from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.facts.grids import same_fact
from interpret.locating.tables import LocationGrid, location_averages

SITE_LABELS = {"resid_post": "layer output", "attn_out": "attention", "mlp_out": "MLP"}


def location_figure(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean scores of an attribution as heatmaps, buckets by layers, one a site, on one scale.

    Args:
        located: grids of any facts and sites.
        scheme: how tokens are sorted into buckets.

    Raises:
        InputError: if there is no grid, or they differ in layers.
    """
    return bucket_heatmaps(location_averages(located, scheme=scheme), SCHEMES[scheme], *_location_words(located))


def location_lines(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean scores of an attribution over layers, a line a bucket with its 95% interval, one panel a site.

    Args:
        located: grids of any facts and sites.
        scheme: how tokens are sorted into buckets.

    Raises:
        InputError: if there is no grid, or they differ in layers.
    """
    return bucket_lines(location_averages(located, scheme=scheme), SCHEMES[scheme], *_location_words(located))


def located_fact_figure(located: Sequence[LocationGrid]) -> Figure:
    """Draw one fact's scores as heatmaps, T tokens by L layers, one a site, on one scale. The subject has a star.

    Args:
        located: the grids of one fact.

    Raises:
        InputError: if there is no grid, or they are not of one fact.
    """
    first, (words, _) = same_fact(located), _location_words(located)
    title = f"{first.name}: what speaks for {shown(first.answer).strip()}; the subject has a star (*)"
    panels = {words.titles[grid.site]: grid.effects for grid in located}
    return token_heatmaps(first.tokens, range(*first.subject_span), panels, centre=0.0, unit=words.unit, title=title)


def _location_words(located: Sequence[LocationGrid]) -> tuple[PanelWords, str]:
    """Say what scores of an attribution are, in the words of a figure and as its headline."""
    if not located:
        raise InputError("there are no scores to draw")
    function = located[0].attributed_fn
    unit = "p(answer) - p(foil)" if function == "contrast_prob_diff" else function
    n = len({grid.name for grid in located})
    headline = f"Gradient x activation of {unit}\nmean over n={n} fact{'s'[: n != 1]}"
    return PanelWords(SITE_LABELS, f"score ({unit})"), headline
