"""The result of a comparison of attribution methods: curves, areas, their table and figure."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interpret import drawing
from interpret.display.heatmaps import Band, Heatmap, Panel, plain_headings, readable
from interpret.display.shown import Rows, grouped
from interpret.display.view import View
from interpret.errors import InputError
from interpret.records import MethodComparison
from interpret.stats import Average, Floats, average

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random"
"""The method of rows that hold the mean of random orders."""
SHARES = np.linspace(0, 1, 21)
"""The shares of tokens at which curves of texts of different lengths are averaged."""


class Comparison(Rows[MethodComparison]):
    """Rows of compared attribution methods: those of ``compare_methods``, or of a run."""

    record_type = MethodComparison

    def summary(self) -> pd.DataFrame:
        """Return the mean areas of each method, with 95% bootstrap intervals over prompts, the best insertion first.

        Columns: ``method``; ``insertion``, ``insertion_low``, ``insertion_high``, and the same of ``deletion``; ``n``,
        the number of prompts. Areas of several tokens of a prompt are averaged first.
        """
        rows = []
        for method, own in self._by_method().items():
            found = {side: average(_of_prompts(own, side)) for side in ("insertion", "deletion")}
            columns = {
                side + end: float(value)
                for side, of_side in found.items()
                for end, value in (("", of_side.mean), ("_low", of_side.low), ("_high", of_side.high))
            }
            rows.append({"method": method, **columns, "n": int(found["insertion"].n)})
        return pd.DataFrame(rows).sort_values("insertion", ascending=False, ignore_index=True)

    def average_figure(self) -> "Figure":
        """Draw the mean curves of all methods with their 95% intervals over prompts, insertion beside deletion.

        Raises:
            InputError: if there is no row.
        """
        if not self:
            raise InputError("no curves to draw: the comparison is empty")
        with drawing.styled():
            figure = drawing.Sheet(figsize=(6.4, 3.0), layout="constrained")
            panels, lines = figure.subplots(1, 2, sharey=True), drawing.LINES
            for panel, (side, better) in zip(panels, (("insertion", "higher"), ("deletion", "lower")), strict=True):
                for number, (method, own) in enumerate(self._by_method().items()):
                    grey = method == RANDOM
                    colour, dashes = (drawing.OKABE_ITO["grey"], "-") if grey else lines[number % len(lines)]
                    found = average_curve(own, side)
                    panel.plot(SHARES, found.mean, color=colour, linestyle=dashes, linewidth=1.3, label=method)
                    panel.fill_between(SHARES, found.low, found.high, color=colour, alpha=0.15, linewidth=0)
                panel.set_title(f"{side}: {better} is better")
                panel.set_xlabel("share of tokens put in" if side == "insertion" else "share of tokens masked")
                panel.margins(x=0)
                panel.spines[["top", "right"]].set_visible(False)
            panels[0].set_ylabel(self[0].attributed_fn)
            handles = panels[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
            n = len({row.name for row in self})
            shaded = "; shaded: 95% intervals" if n > 1 else ""
            figure.suptitle(f"Attribution methods, mean over n={n} prompt{'s'[: n != 1]}{shaded}")
        return figure

    def view(self) -> View:
        """Return what is shown: for each attributed token the curves of all methods, as rows of numbers."""
        parts = grouped(self, lambda row: (row.name, row.step))
        function = self[0].attributed_fn if self else ""
        areas = {
            row.method: f"insertion {row.insertion:.4g}, deletion {row.deletion:.4g}"
            for row in (self.summary().itertuples() if self else ())
        }
        return View(
            title="Attribution methods compared by insertion and deletion",
            unit=function,
            panels=lambda: _panels(parts),
            n_panels=len(parts),
            facts={f"mean area of {method}": area for method, area in areas.items()},
        )

    def _by_method(self) -> dict[str, list[MethodComparison]]:
        return {own[0].method: own for own in grouped(self, lambda row: row.method)}


def _of_prompts(rows: Sequence[MethodComparison], side: str) -> list[float]:
    """Return the mean area of each prompt."""
    return [
        float(np.mean([getattr(row, f"{side}_area") for row in of_one]))
        for of_one in grouped(rows, lambda row: row.name)
    ]


def average_curve(rows: Sequence[MethodComparison], side: str) -> Average:
    """Return the mean curve of a method over prompts, at ``SHARES`` of the tokens."""
    of_prompts = [
        np.mean([_at_shares(getattr(row, side)) for row in of_one], axis=0)
        for of_one in grouped(rows, lambda row: row.name)
    ]
    return average(of_prompts)


def _at_shares(curve: Sequence[float]) -> Floats:
    return np.interp(SHARES, np.linspace(0, 1, len(curve)), curve)


def _panels(parts: Sequence[Sequence[MethodComparison]]) -> Iterator[Panel]:
    for rows in parts:
        first = rows[0]
        answer = readable(first.step_token)
        if first.foil_token:
            answer += f" (foil: {readable(first.foil_token)})"
        grids = [_grid(rows, "insertion", "put in"), _grid(rows, "deletion", "masked")]
        lowest = min(min(row.insertion + row.deletion) for row in rows)
        yield Panel(readable(first.prompt), grids, answer, name=first.name, signed=lowest < 0)


def _grid(rows: Sequence[MethodComparison], side: str, done: str) -> Heatmap:
    values = np.array([getattr(row, side) for row in rows])
    names = plain_headings([f"{row.method} {getattr(row, f'{side}_area'):.3g}" for row in rows])
    columns = plain_headings(range(values.shape[1]))
    title = f"{side}: the value after that many tokens are {done}"
    return Heatmap(title, "method, area", columns, [Band("", names, values)], across="number of tokens")
