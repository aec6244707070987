"""What rows of fact pages show in a terminal, a figure and a plain page: a heat map of each method for each fact."""

from collections.abc import Sequence

import numpy as np

from interpret.display.heatmaps import Band, Heatmap, Panel, headings, plain_headings, readable, small_probability
from interpret.display.shown import Rows, grouped
from interpret.display.view import View
from interpret.factpages.grids import FactGrids
from interpret.records import FactCell

MAP_TITLES = {
    "trace": "tracing: indirect effect of the layer's output",
    "attribution": "attribution: activation × gradient of the layer's output",
    "lens": "logit lens: minus the logarithm (base 10) of the rank of the answer",
}


class FactCells(Rows[FactCell]):
    """Rows of fact pages: those of a run, or of ``fact_page``."""

    record_type = FactCell

    def view(self) -> View:
        """Return what is shown: for each fact a heat map of tracing, attribution and logit lens."""
        facts = grouped(self, key=lambda row: row.name)
        return View(
            title=f"{len(facts)} fact{'s'[: len(facts) != 1]} by every method",
            unit="scores of the outputs of layers, see the titles",
            panels=lambda: map(_panel, facts),
            n_panels=len(facts),
        )


def _panel(cells: Sequence[FactCell]) -> Panel:
    first, grids = cells[0], FactGrids.of(cells)
    start, end = grids.subject_span
    tokens = headings([token + "*" * (start <= place < end) for place, token in enumerate(grids.tokens)])
    layers = plain_headings(range(grids.n_layers))
    scores = {**grids.scores, "lens": -np.log10(-grids.scores["lens"])}
    maps = [
        Heatmap(MAP_TITLES[name], "token", layers, [Band("", tokens, values)], across="layer", compact=True)
        for name, values in scores.items()
    ]
    answer = f"{readable(first.answer)} (P {small_probability(first.clean)})"
    return Panel(readable(first.prompt), maps, answer, name=first.name)
