"""Figures of causal traces, from stored rows; the model is not needed.

After ROME (Meng et al. 2022, figures 2 and 3): average indirect effects (AIE) as heatmaps and as lines with confidence
intervals; and bars that show how much of the effect remains when attention or MLPs are severed. After Geva et al. 2023
(figure 2): curves of attention knockout. ``tracing.show`` draws one fact.
``locations`` draws attribution scores in the same layout. Each function returns a matplotlib figure;
``interpret.drawing.save`` writes it as PNG and PDF, with the same bytes for the same numbers. A figure shows one
metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from interpret.drawing.panels import (
    BUCKET_LABELS,
    PanelWords,
    Sheet,
    bucket_heatmaps,
    bucket_lines,
    layer_curves,
    layers_below,
    styled,
    token_heatmaps,
)
from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.facts.grids import bucket_averages, by_part
from interpret.records import UnitCell
from interpret.stats import Average, Floats, average
from interpret.tracing.mediators import HIDDEN, mediator_of
from interpret.tracing.show import warning
from interpret.tracing.tables import TraceGrid, check_same_metric, metric_of, total_average, unit_means

PROBABILITY = "probability"


def average_figure(traced: Sequence[TraceGrid], *, scheme: Scheme = "rome", window: int | None = None) -> Figure:
    """Draw average indirect effects as heatmaps, buckets by layers, one panel per mediator, with a shared colour scale.

    The scale is symmetric around 0 and covers all averages: white at 0, blue above, orange below.

    Args:
        traced: grids of any facts and mediators, of one metric.
        scheme: bucket scheme, ``rome`` or ``kt``.
        window: number of layers of a window, for the titles.

    Raises:
        InputError: if there is no grid, or the grids differ in their number of layers or their metric.
    """
    return bucket_heatmaps(
        _averages(traced, scheme),
        SCHEMES[scheme],
        _words(traced, window),
        _headline(traced),
    )


def line_figure(traced: Sequence[TraceGrid], *, scheme: Scheme = "rome", window: int | None = None) -> Figure:
    """Draw average indirect effects over layers, one line per bucket with its 95% interval, one panel per mediator.

    Args:
        traced: grids of any facts and mediators, of one metric.
        scheme: bucket scheme, ``rome`` or ``kt``.
        window: number of layers of a window, for the titles.

    Raises:
        InputError: if there is no grid, or the grids differ in their number of layers or their metric.
    """
    return bucket_lines(
        _averages(traced, scheme),
        SCHEMES[scheme],
        _words(traced, window),
        _headline(traced),
    )


def severed_grids(traced: Sequence[TraceGrid]) -> list[TraceGrid]:
    """Return the grids that ``severed_figure`` compares: those of ``hidden`` and of mediators that sever modules.

    Args:
        traced: grids of any facts and mediators, of one metric.

    Returns:
        The grids; empty unless there are grids of both kinds.
    """
    present = {grid.mediator for grid in traced}
    severed = {name for name in present if mediator_of(name).pins}
    if HIDDEN.name not in present or not severed:
        return []
    return [grid for grid in traced if grid.mediator in {HIDDEN.name, *severed}]


def severed_figure(traced: Sequence[TraceGrid]) -> Figure:
    """Draw the average indirect effect at the last subject token as bars, with and without severed modules.

    Args:
        traced: grids of ``hidden`` and of severed mediators; other grids are ignored.

    Raises:
        InputError: if there are no grids of ``hidden`` or none of a severed mediator, or the grids differ in their
            number of layers or their metric.
    """
    wanted = severed_grids(traced)
    if not wanted:
        raise InputError(
            "a figure of severed effects needs grids of the mediator hidden and of a severed mediator: trace both"
        )
    check_same_metric(wanted)
    found = {name: average(_last_subject(of_one)) for name, of_one in by_part(wanted, "mediator").items()}
    n_layers = wanted[0].effects.shape[1]
    with styled():
        figure = Sheet(figsize=(max(5.0, 0.17 * n_layers + 1.2), 2.8), layout="constrained")
        panel = figure.subplots()
        width = 0.84 / len(found)
        for number, (mediator, effect) in enumerate(found.items()):
            places = np.arange(n_layers) + (number - (len(found) - 1) / 2) * width
            panel.bar(
                places,
                effect.mean,
                width,
                color=mediator_of(mediator).colour,
                label=_label(mediator, None).replace("\n", " "),
                yerr=[effect.mean - effect.low, effect.high - effect.mean],
                error_kw={"elinewidth": 0.5, "ecolor": "#444444"},
            )
        panel.axhline(0, color="black", linewidth=0.5)
        panel.margins(x=0.01)
        panel.set_ylabel(_unit(wanted))
        layers_below(panel, n_layers)
        panel.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=len(found), frameon=False)
        n = len({grid.name for grid in wanted})
        lines = "; lines: 95% intervals" if n > 1 else ""
        title = f"Restoring the last subject token, n={n} fact{'s'[: n != 1]}{lines}{warning(wanted)}"
        figure.suptitle(title, fontsize=9)
    return figure


def knockout_grids(traced: Sequence[TraceGrid]) -> list[TraceGrid]:
    """Return the grids that ``knockout_figure`` draws: those of mediators that knock out attention."""
    return [grid for grid in traced if mediator_of(grid.mediator).sources]


def knockout_figure(traced: Sequence[TraceGrid], *, window: int | None = None) -> Figure:
    """Draw how much knocking out the last token's attention changes the probability of the answer, by source.

    The change of a probability is relative to the clean run, as in figure 2 of Geva et al. 2023; one curve over layers
    per source, with its 95% interval over facts.

    Args:
        traced: grids of mediators that knock out attention; other grids are ignored.
        window: number of layers of a window, for the title.

    Raises:
        InputError: if no mediator knocks out attention, or the grids differ in their number of layers or their metric.
    """
    wanted = knockout_grids(traced)
    if not wanted:
        raise InputError("a figure of attention knockout needs grids of attn_knockout: trace it")
    check_same_metric(wanted)
    if len(depths := sorted({grid.effects.shape[1] for grid in wanted})) > 1:
        raise InputError(f"cannot average grids with different numbers of layers: {', '.join(map(str, depths))}")
    curves = {
        mediator_of(name).sources: average([_change(grid)[-1] for grid in of_one])
        for name, of_one in by_part(wanted, "mediator").items()
    }
    drawn = [replace(grid, effects=grid.effects[-1:], exact=grid.exact[-1:]) for grid in wanted]
    measured = metric_of(wanted[0].metric)
    n = len({grid.name for grid in wanted})
    shaded = "; shaded: 95% intervals" if n > 1 else ""
    return layer_curves(
        {"attention of the last token to": curves},
        unit=f"change of {measured}" + " in %" * _in_percent(wanted[0]) + ", share of the total" * wanted[0].share,
        headline=f"Knocked out in {window or 'some'} layers, n={n} fact{'s'[: n != 1]}{shaded}{warning(drawn)}",
    )


def heads_figure(rows: Sequence[UnitCell]) -> Figure:
    """Draw the average indirect effect of single heads, heads by layers, at the last token of subject and prompt.

    Args:
        rows: rows of single heads and neurons of one model; neurons are ignored.

    Raises:
        InputError: if there is no row of a head, or rows of heads have several metrics.
    """
    heads = [row for row in rows if row.mediator == "heads"]
    if not heads:
        raise InputError("a figure of heads needs rows of the mediator heads: trace it")
    check_same_metric(heads)
    shape = max(row.unit for row in heads) + 1, max(row.layer_idx for row in heads) + 1
    panels_of: dict[str, Floats] = {}
    for one in unit_means(heads):
        values = panels_of.setdefault(BUCKET_LABELS[one.bucket], np.full(shape, np.nan))
        values[one.unit, one.layer_idx] = one.mean
    n = len({row.name for row in heads})
    return token_heatmaps(
        [f"head {head}" for head in range(shape[0])],
        (),
        dict(sorted(panels_of.items(), key=lambda panel: panel[0] == BUCKET_LABELS["last"])),
        centre=0.0,
        unit=f"AIE (change of {metric_of(heads[0].metric)})",
        title=f"Average indirect effect of single heads, n={n} fact{'s'[: n != 1]}",
    )


def _change(grid: TraceGrid) -> Floats:
    """Return the effects, [T, L]; those on a probability in percent of the clean run, unless they are shares."""
    return 100 * grid.effects / grid.clean if _in_percent(grid) else grid.effects


def _in_percent(grid: TraceGrid) -> bool:
    return grid.metric == PROBABILITY and not grid.share


def _unit(traced: Sequence[TraceGrid]) -> str:
    """Return the unit of averages of some grids."""
    metric = "probability" if traced[0].metric == PROBABILITY else metric_of(traced[0].metric)
    return f"AIE (share of the total effect\non {metric})" if traced[0].share else f"AIE (change of {metric})"


def _words(traced: Sequence[TraceGrid], window: int | None) -> PanelWords:
    labels = {mediator: _label(mediator, window) for mediator in by_part(traced, "mediator")}
    return PanelWords(labels, _unit(traced) if traced else "")


def _averages(traced: Sequence[TraceGrid], scheme: Scheme) -> Mapping[str, Average]:
    """Average each mediator's grids, [buckets, L]."""
    if not traced:
        raise InputError("no traces to average: traced is empty")
    check_same_metric(traced)
    return {name: bucket_averages(of_one, scheme=scheme) for name, of_one in by_part(traced, "mediator").items()}


def _last_subject(traced: Sequence[TraceGrid]) -> list[Floats]:
    """Return each prompt's effects at the last token of its subject, [L]."""
    return [grid.effects[grid.subject_span[1] - 1] for grid in traced]


def _headline(traced: Sequence[TraceGrid]) -> str:
    """Return the title of averages: the number of facts, and the average total effect for comparison."""
    of_one = next(iter(by_part(traced, "mediator").values()))
    total = total_average(of_one)
    interval = f" ({total.low:.3f} to {total.high:.3f})" if total.n > 1 else ""
    return (
        f"Average indirect effect of n={len(of_one)} fact{'s'[: len(of_one) != 1]}\n"
        f"average total effect {total.mean:.3f}{interval}{warning(traced)}"
    )


def _label(mediator: str, window: int | None) -> str:
    """Return the title of a mediator."""
    return mediator_of(mediator).title(window)
