"""Figures of a causal trace, or of facts located by attribution, from stored rows alone: the model is not needed.

After ROME (Meng et al. 2022, figures 1 to 3): a heatmap of each fact; average indirect effects (AIE) as heatmaps and
as lines with intervals; and bars that show how much of the effect is lost when attention or MLPs are severed. Scores
of an attribution are drawn alike, a panel a site, so that the two can be held side by side. Each function returns a
figure of matplotlib, ``save`` writes it as PNG and PDF, the same bytes for the same numbers.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from interpret.drawing.panels import (
    STYLE,
    PanelWords,
    bucket_heatmaps,
    bucket_lines,
    layers_below,
    shown,
    token_heatmaps,
)
from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.facts.grids import bucket_averages, same_fact
from interpret.stats import Average, Floats, average
from interpret.tracing.tables import TraceGrid, by_mediator, estimated, total_average

LABELS = {
    "hidden": "hidden state",
    "attn_severed": "hidden state,\nattention severed",
    "mlp_severed": "hidden state,\nMLP severed",
    "attn_window": "attention, {window} layers",
    "mlp_window": "MLP, {window} layers",
}
"""What is restored, in words."""
AIE = "AIE (change of probability)"
COLOURS = {
    "hidden": "#7570b3",
    "attn_severed": "#d95f02",
    "mlp_severed": "#1b9e77",
    "attn_window": "#d95f02",
    "mlp_window": "#1b9e77",
}


def prompt_figure(traced: Sequence[TraceGrid], *, window: int | None = None) -> Figure:
    """Draw one fact's traces as heatmaps, T tokens by L layers, one a mediator, on one scale.

    The scale starts at the probability in the corrupted runs, as in ROME, which is white; what is below is green, as
    steeply. Tokens of the subject have a star.

    Args:
        traced: the grids of one fact, such as ``trace_grids`` makes of the rows of ``trace_facts``.
        window: layers of the windows, for the titles.

    Raises:
        InputError: if there is no grid, or they are not of one fact.
    """
    first, answer = same_fact(traced), shown(traced[0].answer).strip()
    title = f"{first.name}: p({answer}) is {first.p_clean:.3f}, {first.p_corrupted:.3f} with noise on the subject (*)"
    panels = {_label(grid.mediator, window): grid.scores for grid in traced}
    return token_heatmaps(
        first.tokens,
        range(*first.subject_span),
        panels,
        centre=first.p_corrupted,
        unit=f"p({answer})",
        title=title + _warning(traced),
    )


def average_figure(traced: Sequence[TraceGrid], *, scheme: Scheme = "rome", window: int | None = None) -> Figure:
    """Draw average indirect effects as heatmaps, buckets by layers, one a mediator, on one scale.

    The scale is set by the averages drawn, none is cut off: white at 0, purple above, and green below, as steeply.

    Args:
        traced: grids of any facts and mediators.
        scheme: how tokens are sorted into buckets.
        window: layers of the windows, for the titles.

    Raises:
        InputError: if there is no grid, or they differ in layers.
    """
    return bucket_heatmaps(
        _averages(traced, scheme), SCHEMES[scheme], PanelWords(_mediator_labels(traced, window), AIE), _headline(traced)
    )


def line_figure(traced: Sequence[TraceGrid], *, scheme: Scheme = "rome", window: int | None = None) -> Figure:
    """Draw average indirect effects over layers, a line a bucket with its 95% interval, one panel a mediator.

    Args:
        traced: grids of any facts and mediators.
        scheme: how tokens are sorted into buckets.
        window: layers of the windows, for the titles.

    Raises:
        InputError: if there is no grid, or they differ in layers.
    """
    return bucket_lines(
        _averages(traced, scheme), SCHEMES[scheme], PanelWords(_mediator_labels(traced, window), AIE), _headline(traced)
    )


def severed_figure(traced: Sequence[TraceGrid]) -> Figure:
    """Draw the average indirect effect at the last subject token as bars, and what severing leaves of it.

    Args:
        traced: grids; those of windows are left out.

    Raises:
        InputError: if no grid is of ``hidden`` and none of a severed mediator, or they differ in layers.
    """
    wanted = [grid for grid in traced if grid.mediator in ("hidden", "attn_severed", "mlp_severed")]
    if len({grid.mediator for grid in wanted}) < 2:
        raise InputError(
            "severed effects are compared with those of hidden states: trace hidden and a severed mediator"
        )
    found = {name: average(_last_subject(of_one)) for name, of_one in by_mediator(wanted).items()}
    n_layers = wanted[0].effects.shape[1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.0, 0.17 * n_layers + 1.2), 2.8), layout="constrained")
        panel = figure.subplots()
        width = 0.84 / len(found)
        for number, (mediator, effect) in enumerate(found.items()):
            places = np.arange(n_layers) + (number - (len(found) - 1) / 2) * width
            panel.bar(
                places,
                effect.mean,
                width,
                color=COLOURS[mediator],
                label=_label(mediator, None).replace("\n", " "),
                yerr=[effect.mean - effect.low, effect.high - effect.mean],
                error_kw={"elinewidth": 0.5, "ecolor": "#444444"},
            )
        panel.axhline(0, color="black", linewidth=0.5)
        panel.margins(x=0.01)
        panel.set_ylabel(AIE)
        layers_below(panel, n_layers)
        panel.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=len(found), frameon=False)
        n = len({grid.name for grid in wanted})
        figure.suptitle(
            f"Restoring the last subject token, n={n} fact{'s'[: n != 1]}; lines: 95% intervals" + _warning(wanted),
            fontsize=9,
        )
    return figure


def _mediator_labels(traced: Sequence[TraceGrid], window: int | None) -> dict[str, str]:
    return {mediator: _label(mediator, window) for mediator in by_mediator(traced)}


def _averages(traced: Sequence[TraceGrid], scheme: Scheme) -> Mapping[str, Average]:
    """Average each mediator's grids, [buckets, L]."""
    if not traced:
        raise InputError("there are no traces to average")
    return {name: bucket_averages(of_one, scheme=scheme) for name, of_one in by_mediator(traced).items()}


def _last_subject(traced: Sequence[TraceGrid]) -> list[Floats]:
    """Return each prompt's effects at the last token of its subject, [L]."""
    return [grid.effects[grid.subject_span[1] - 1] for grid in traced]


def _headline(traced: Sequence[TraceGrid]) -> str:
    """Say over how many facts the averages are, and the total effect, which bounds them."""
    of_one = next(iter(by_mediator(traced).values()))
    total = total_average(of_one)
    return (
        f"Average indirect effect of n={len(of_one)} fact{'s'[: len(of_one) != 1]}\n"
        f"average total effect {total.mean:.3f} ({total.low:.3f} to {total.high:.3f}){_warning(traced)}"
    )


def _warning(traced: Sequence[TraceGrid]) -> str:
    """Return a part of a title that says how much of what is drawn is estimated."""
    words = estimated(traced)
    return f"; {words}" if words else ""


def _label(mediator: str, window: int | None) -> str:
    """Say what a mediator restores."""
    return LABELS[mediator].format(window="some" if window is None else window)
