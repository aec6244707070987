"""What facts located by attribution show: for each fact a heat map of every site, tokens by layers."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from interpret import drawing
from interpret.display.heatmaps import Band, Heatmap, Panel, headings, plain_headings, readable, small_probability
from interpret.display.shown import Rows, check_input
from interpret.display.view import View
from interpret.errors import InputError
from interpret.facts.grids import not_finite, same_fact
from interpret.locating.tables import LocationGrid, location_grids
from interpret.records import LocationCell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SITE_LABELS = {"resid_post": "layer output", "attn_out": "attention", "mixer_out": "mixer", "mlp_out": "MLP"}
CONTRAST = "contrast_prob_diff"


class Locations(Rows[LocationCell]):
    """Rows of facts located by attribution: those of ``locate_facts``, or of a run."""

    record_type = LocationCell

    def view(self) -> View:
        """Return what is shown: the scores of each fact."""
        facts = [list(rows) for _, rows in groupby(self, key=lambda row: row.name)]
        located = location_grids(self)
        count = f"{len(facts)} fact{'s'[: len(facts) != 1]}"
        return View(
            title=f"{count[:1].upper()}{count[1:]} located by gradient × activation",
            unit=location_words(located)[0].unit,
            panels=lambda: map(_panel, facts),
            n_panels=len(facts),
            facts={"attributed function": facts[0][0].attributed_fn},
            warning=not_finite(located),
        )

    def figure(self, input: int = 0) -> "Figure":
        """Draw one fact's scores, see ``located_fact_figure``.

        Args:
            input: number of the fact, from 0.

        Raises:
            InputError: if there is no such fact.
        """
        facts = list(_by_fact(location_grids(self)))
        check_input(input, len(facts))
        return located_fact_figure(facts[input])


def _by_fact(located: Sequence[LocationGrid]) -> Iterator[list[LocationGrid]]:
    for _, grids in groupby(located, key=lambda grid: grid.name):
        yield list(grids)


def _panel(rows: Sequence[LocationCell]) -> Panel:
    """Return the panel of one fact, given its rows."""
    first = rows[0]
    answer = f"{readable(first.answer)} (P {small_probability(first.p_true)})"
    if first.p_false is not None:
        answer += f" rather than {readable(first.foil)} (P {small_probability(first.p_false)})"
    return Panel(readable(first.prompt), [_heatmap(grid) for grid in location_grids(rows)], answer, name=first.name)


def _heatmap(grid: LocationGrid) -> Heatmap:
    subject = range(*grid.subject_span)
    tokens = headings([token + "*" * (place in subject) for place, token in enumerate(grid.tokens)])
    layers = plain_headings(range(grid.effects.shape[1]))
    title = SITE_LABELS.get(grid.site, grid.site)
    return Heatmap(title, "token", layers, [Band("", tokens, grid.effects)], across="layer", compact=True)


def located_fact_figure(located: Sequence[LocationGrid]) -> "Figure":
    """Draw one fact's scores as heatmaps, T tokens by L layers, one panel per site, with a shared colour scale.

    Tokens of the subject are marked with a star.

    Args:
        located: the grids of one fact.

    Raises:
        InputError: if there is no grid, or the grids belong to several facts.
    """
    first, (words, _) = same_fact(located), location_words(located)
    bad = not_finite(located)
    title = f"{first.name}: attribution of {drawing.shown(first.answer).strip()}; (*) marks the subject"
    title += f"\n{bad}" if bad else ""
    panels = {words.titles[grid.site]: grid.effects for grid in located}
    return drawing.token_heatmaps(
        first.tokens, range(*first.subject_span), panels, centre=0.0, unit=words.unit, title=title
    )


def location_words(located: Sequence[LocationGrid]) -> "tuple[drawing.PanelWords, str]":
    """Return the titles, unit and headline of a figure of attribution scores.

    Raises:
        InputError: if there is no grid.
    """
    if not located:
        raise InputError("no scores to draw: located is empty")
    function = located[0].attributed_fn
    unit = "P(answer) − P(foil)" if function == CONTRAST else function
    n = len({grid.name for grid in located})
    words = not_finite(located)
    headline = f"Gradient x activation of {unit}\nmean over n={n} fact{'s'[: n != 1]}" + (f"; {words}" if words else "")
    return drawing.PanelWords(SITE_LABELS, f"score ({unit})"), headline
