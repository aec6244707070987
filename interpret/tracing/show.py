"""What causal traces show: for each fact and metric a heat map of every mediator, tokens by layers."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from interpret import drawing
from interpret.display.heatmaps import Band, Heatmap, Panel, headings, plain_headings, readable, small_probability
from interpret.display.shown import Rows, check_input
from interpret.display.view import View
from interpret.facts.grids import by_part, not_finite, same_fact
from interpret.records import TraceCell
from interpret.tracing.mediators import mediator_of
from interpret.tracing.tables import (
    METRIC_WORDS,
    TraceGrid,
    check_same_metric,
    estimated,
    metric_of,
    trace_grids,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Traces(Rows[TraceCell]):
    """Rows of causal traces, of one fact or many: those of ``trace_facts``, or of a run."""

    record_type = TraceCell

    def view(self) -> View:
        """Return what is shown: the indirect effects of each fact, on each metric."""
        return trace_view(trace_grids(self), window_of(self))

    def figure(self, input: int = 0) -> "Figure":
        """Draw one fact's traces by one metric, see ``prompt_figure``.

        Args:
            input: number of the fact, from 0; if there are several metrics, each fact is counted once per metric.

        Raises:
            InputError: if there is no such fact.
        """
        shown = by_fact_and_metric(trace_grids(self))
        check_input(input, len(shown))
        return prompt_figure(shown[input], window=window_of(self))


RESTORED = "indirect effect: {0} with one state restored − {0} in the corrupted run"
CHANGED = "effect: {0} in the changed clean run − {0} in the clean run"


def window_of(rows: Sequence[TraceCell]) -> int | None:
    """Return the number of layers of a window, for titles; None if there is none."""
    return next((row.window for row in rows if row.window is not None), None)


def by_fact_and_metric(traced: Sequence[TraceGrid]) -> list[list[TraceGrid]]:
    """Group neighbouring grids by fact, and the grids of each fact by metric."""
    facts = groupby(traced, key=lambda grid: grid.name)
    return [of_one for _, of_fact in facts for of_one in by_part(of_fact, "metric").values()]


def trace_view(traced: Sequence[TraceGrid], window: int | None = None) -> View:
    """Return what traces show.

    Args:
        traced: grids of any facts, mediators and metrics; those of a fact are neighbours.
        window: number of layers of a window, for the titles.
    """
    facts, metrics = (list(dict.fromkeys(getattr(grid, part) for grid in traced)) for part in ("name", "metric"))
    measured = metric_of(metrics[0]) if len(metrics) == 1 else "the metric"
    shown = by_fact_and_metric(traced)
    mediators = dict.fromkeys(mediator_of(grid.mediator).title(window).replace("\n", " ") for grid in traced)
    runs = {mediator_of(grid.mediator).acts_on for grid in traced}
    units = {"corrupted": RESTORED, "clean": CHANGED}
    return View(
        title="Causal trace" + (f" of {readable(traced[0].answer)}" if len(facts) == 1 else f"s of {len(facts)} facts"),
        unit="; ".join(unit.format(measured) for run, unit in units.items() if run in runs),
        panels=lambda: _panels(shown, window, named=len(facts) > 1, measured=len(metrics) > 1),
        n_panels=len(shown),
        facts={"mediators": ", ".join(mediators)},
        warning="; ".join(filter(None, [estimated(traced), not_finite(traced)])),
    )


def _panels(
    shown: Sequence[Sequence[TraceGrid]], window: int | None, *, named: bool, measured: bool
) -> Iterator[Panel]:
    """Yield a panel per fact and metric, with the names of the fact and of the metric if there are several."""
    for grids in shown:
        first = grids[0]
        words = METRIC_WORDS.get(first.metric, first.metric)
        answer = (
            f"{readable(first.answer)} ({words} {small_probability(first.clean)}, "
            f"{small_probability(first.corrupted)} with noise on the subject *)"
        )
        heatmaps = [_heatmap(grid, window) for grid in grids]
        name = ", ".join([first.name] * named + [words] * measured)
        yield Panel(readable(first.prompt), heatmaps, answer, name=name)


def _heatmap(grid: TraceGrid, window: int | None) -> Heatmap:
    subject = range(*grid.subject_span)
    tokens = headings([token + "*" * (place in subject) for place, token in enumerate(grid.tokens)])
    title = mediator_of(grid.mediator).title(window).replace("\n", " ")
    layers = plain_headings(range(grid.effects.shape[1]))
    return Heatmap(title, "token", layers, [Band("", tokens, grid.effects)], across="layer", compact=True)


def prompt_figure(traced: Sequence[TraceGrid], *, window: int | None = None) -> "Figure":
    """Draw one fact's traces as heatmaps, T tokens by L layers, one panel per mediator, with a shared colour scale.

    The probability in the corrupted run is white, as in ROME; the scale is symmetric around it: higher probabilities
    are blue, lower ones orange. Tokens of the subject are marked with a star. If a mediator acts on the clean run, the
    changes of the probability are drawn instead, and white is no change.

    Args:
        traced: the grids of one fact and metric, such as ``trace_grids`` makes from the rows of ``trace_facts``.
        window: number of layers of a window, for the titles.

    Raises:
        InputError: if there is no grid, or the grids belong to several facts or metrics.
    """
    check_same_metric(traced)
    first, answer = same_fact(traced), drawing.shown(traced[0].answer).strip()
    clean, corrupted = small_probability(first.clean), small_probability(first.corrupted)
    measured = metric_of(first.metric, answer)
    title = f"{first.name}: {measured} is {clean}, {corrupted} with noise on the subject (*)"
    restored = all(mediator_of(grid.mediator).acts_on == "corrupted" for grid in traced)
    return drawing.token_heatmaps(
        first.tokens,
        range(*first.subject_span),
        {mediator_of(grid.mediator).title(window): grid.scores if restored else grid.effects for grid in traced},
        centre=first.corrupted if restored and np.isfinite(first.corrupted) else 0.0,
        unit=measured if restored else f"change of {measured}",
        title=title + warning(traced),
    )


def warning(traced: Sequence[TraceGrid]) -> str:
    """Return the part of a figure's title that tells which cells are estimated or not finite, or an empty string."""
    words = "".join(f"; {words}" for words in (estimated(traced), not_finite(traced)) if words)
    return words.replace(" (NaN or infinity) and", " (hatched) and\n")
