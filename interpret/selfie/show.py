"""What interpretations show: a page to explore, and for each prompt a heat map of layers by tokens."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from interpret.display.heatmaps import Band, Heading, Heatmap, Panel, headings, plain_headings, readable
from interpret.display.page import framed
from interpret.display.shown import Rows, Shown, grouped
from interpret.display.view import View
from interpret.finite import left_out
from interpret.pages.interpretations import interpretation_page
from interpret.records import Interpretation

MOST_SHOWN = 300
"""Number of interpretations that a notebook displays by itself; about 1 kB each."""
_READ = ("interpretation", "failed")
"""The kinds of rows that are cells of the grid; the others are controls."""


class Interpretations(Rows[Interpretation]):
    """Rows of self-interpretation: those of ``interpretations``, or of a run."""

    record_type = Interpretation

    def view(self) -> View:
        """Return what a terminal and a figure show: the first words for each state, and their mean relevancy."""
        grids = grouped(self, lambda row: (row.name, row.repeat_prompt_name))
        scores = [mean_relevancy(row) for row in self if row.kind in _READ]
        return View(
            title="Interpretations of hidden states",
            unit="mean relevancy: P(token | state inserted) − P(token | nothing inserted)",
            panels=lambda: (_panel([row for row in rows if row.kind in _READ] or rows[:1]) for rows in grids),
            n_panels=len(grids),
            warning=left_out([score for score in scores if score is not None], "relevancies", "colours"),
        )

    def to_html(self) -> str:
        """Return a page to explore the interpretations, which loads nothing from elsewhere."""
        return interpretation_page(self, {})

    def _pieces(self) -> Iterable[str]:
        return [self.to_html()]

    def _repr_html_(self) -> str:
        """Return what a notebook displays: the page of the first interpretations, in a closed frame."""
        first = Interpretations(islice(self, MOST_SHOWN))
        left = f"<p>{len(first)} of {len(self)} rows; show() displays all</p>" if len(first) < len(self) else ""
        return left + framed(first.to_html(), height="44rem") if first else repr(self)


class InterpretedStates(dict[str, list[Any]], Shown):
    """The table that ``interpret`` returns, a dict of columns; it shows itself."""

    def __init__(self, columns: Mapping[str, list[Any]], rows: Iterable[Interpretation]) -> None:
        """Store the columns, and the rows that they were made of."""
        super().__init__(columns)
        self.rows = Interpretations(rows)

    def to_frame(self) -> Any:
        """Return the columns as a DataFrame, one row per interpretation."""
        import pandas

        return pandas.DataFrame(dict(self))

    def view(self) -> View:
        """Return what a terminal and a figure show, see ``Interpretations.view``."""
        return self.rows.view()

    def to_html(self) -> str:
        """Return a page to explore the interpretations, which loads nothing from elsewhere."""
        return self.rows.to_html()

    def _pieces(self) -> Iterable[str]:
        return self.rows._pieces()

    def _repr_html_(self) -> str:
        return self.rows._repr_html_()


def mean_relevancy(row: Interpretation) -> float | None:
    """Return the mean over the tokens of P_with - P_without; None for an empty interpretation."""
    return float(np.mean(row.signed_relevancy)) if row.signed_relevancy else None


def _panel(rows: Sequence[Interpretation]) -> Panel:
    """Return the panel of one prompt and interpretation prompt: layers by tokens."""
    layers = sorted({-1 if row.layer_idx is None else row.layer_idx for row in rows})
    tokens = sorted({-1 if row.token_idx is None else row.token_idx for row in rows})
    values = np.full((len(layers), len(tokens)), np.nan)
    texts = [[""] * len(tokens) for _ in layers]
    for row in rows:
        line = layers.index(-1 if row.layer_idx is None else row.layer_idx)
        column = tokens.index(-1 if row.token_idx is None else row.token_idx)
        score = mean_relevancy(row)
        values[line, column] = np.nan if score is None else score
        texts[line][column] = "failed" if row.kind == "failed" else readable(row.interpretation_text) or "∅"
    whole = headings(rows[0].prompt_token_list)
    across = [whole[token] if token >= 0 else Heading("vector") for token in tokens]
    band = Band("", plain_headings(["" if layer < 0 else layer for layer in layers]), values, texts=texts)
    grid = Heatmap(f"Interpretation prompt “{rows[0].repeat_prompt_name}”", "layer", across, [band])
    read = [token for token in tokens if token >= 0]
    words = "".join(rows[0].prompt_token_list[min(read) : max(read) + 1]) if read else rows[0].prompt
    return Panel(readable(words), [grid], name=rows[0].name)
