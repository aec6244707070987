"""Figures of a causal trace, or of facts located by attribution, from stored rows alone: the model is not needed.

After ROME (Meng et al. 2022, figures 1 to 3): a heatmap of each fact; average indirect effects (AIE) as heatmaps and
as lines with intervals; and bars that show how much of the effect is lost when attention or MLPs are severed. Scores
of an attribution are drawn alike, a panel a site, so that the two can be held side by side. Each function returns a
figure of matplotlib, ``save`` writes it as PNG and PDF, the same bytes for the same numbers.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.locating.tables import LocationGrid, location_averages
from interpret.stats import Average, average
from interpret.storage.disk import replace_whole
from interpret.tracing.tables import Grid, TraceGrid, bucket_averages, by_mediator, estimated, total_average

Floats = NDArray[np.float64]
LABELS = {
    "hidden": "hidden state",
    "attn_severed": "hidden state,\nattention severed",
    "mlp_severed": "hidden state,\nMLP severed",
    "attn_window": "attention, {window} layers",
    "mlp_window": "MLP, {window} layers",
}
"""What is restored, in words."""
SITE_LABELS = {"resid_post": "layer output", "attn_out": "attention", "mlp_out": "MLP"}
AIE = "AIE (change of probability)"
COLOURS = {
    "hidden": "#7570b3",
    "attn_severed": "#d95f02",
    "mlp_severed": "#1b9e77",
    "attn_window": "#d95f02",
    "mlp_window": "#1b9e77",
}
BUCKET_LABELS = {
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_subsequent": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles tell them apart in print.
BUCKET_STYLES = {
    "first_subject": ("#56b4e9", (0, (1, 1))),
    "middle_subject": ("#009e73", (0, (4, 1.5))),
    "last_subject": ("#d55e00", "-"),
    "first_subsequent": ("#cc79a7", (0, (5, 1, 1, 1))),
    "further": ("#999999", (0, (3, 1, 1, 1, 1, 1))),
    "last": ("#0072b2", "-"),
}
STYLE: dict[Any, Any] = {  # the keys are literals of matplotlib's
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # text that can be searched and edited
    "savefig.dpi": 200,
}
NO_TOKEN = {"facecolor": "white", "edgecolor": "#bbbbbb", "hatch": "////"}
"""Of a bucket that has no token in any prompt."""


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
    first, answer = _same_fact(traced), shown(traced[0].answer).strip()
    title = f"{first.name}: p({answer}) is {first.p_clean:.3f}, {first.p_corrupted:.3f} with noise on the subject (*)"
    panels = {_label(grid.mediator, window): grid.scores for grid in traced}
    return _token_heatmaps(first, panels, centre=first.p_corrupted, unit=f"p({answer})", title=title + _warning(traced))


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
    return _bucket_heatmaps(
        _averages(traced, scheme), scheme, _Words(_mediator_labels(traced, window), AIE), _headline(traced)
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
    return _bucket_lines(
        _averages(traced, scheme), scheme, _Words(_mediator_labels(traced, window), AIE), _headline(traced)
    )


def location_figure(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean scores of an attribution as heatmaps, buckets by layers, one a site, on one scale.

    Args:
        located: grids of any facts and sites.
        scheme: how tokens are sorted into buckets.

    Raises:
        InputError: if there is no grid, or they differ in layers.
    """
    return _bucket_heatmaps(location_averages(located, scheme=scheme), scheme, *_location_words(located))


def location_lines(located: Sequence[LocationGrid], *, scheme: Scheme = "rome") -> Figure:
    """Draw mean scores of an attribution over layers, a line a bucket with its 95% interval, one panel a site.

    Args:
        located: grids of any facts and sites.
        scheme: how tokens are sorted into buckets.

    Raises:
        InputError: if there is no grid, or they differ in layers.
    """
    return _bucket_lines(location_averages(located, scheme=scheme), scheme, *_location_words(located))


def located_fact_figure(located: Sequence[LocationGrid]) -> Figure:
    """Draw one fact's scores as heatmaps, T tokens by L layers, one a site, on one scale. The subject has a star.

    Args:
        located: the grids of one fact.

    Raises:
        InputError: if there is no grid, or they are not of one fact.
    """
    first, (words, _) = _same_fact(located), _location_words(located)
    title = f"{first.name}: what speaks for {shown(first.answer).strip()}; the subject has a star (*)"
    panels = {words.titles[grid.site]: grid.effects for grid in located}
    return _token_heatmaps(first, panels, centre=0.0, unit=words.unit, title=title)


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
        _layers_below(panel, n_layers)
        panel.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=len(found), frameon=False)
        n = len({grid.name for grid in wanted})
        figure.suptitle(
            f"Restoring the last subject token, n={n} fact{'s'[: n != 1]}; lines: 95% intervals" + _warning(wanted),
            fontsize=9,
        )
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF, without dates, so that the same numbers give the same bytes.

    Args:
        figure: what to write.
        stem: the path without its ending; its folder has to be there.

    Returns:
        The two files.

    Raises:
        RunError: if the disk does not take them.
    """
    written = []
    for ending, undated in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Creator": None})):
        file = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(file, format=ending, metadata=undated)
        path = stem.with_name(f"{stem.name}.{ending}")
        replace_whole(path, file.getvalue())
        written.append(path)
    return written


@dataclass(frozen=True)
class _Words:
    """What a figure of averages says."""

    titles: Mapping[str, str]
    """Of each panel."""
    unit: str
    """Of the numbers."""


def _token_heatmaps(first: Grid, panels_of: Mapping[str, Floats], *, centre: float, unit: str, title: str) -> Figure:
    """Draw arrays of one fact, [T, L] under the title of each panel, on one scale around ``centre``."""
    tokens = [shown(token) for token in first.tokens]
    rows, longest, drawn = len(tokens), max(map(len, tokens)), list(panels_of.values())
    # In inches: a row of text each, and room for the longest token at the left.
    height, left = 0.17 * rows + 1.5, 0.45 + 0.066 * (longest + 1)
    widths = 2.15 * len(drawn)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(left + widths + 0.75, 5.0), height), layout="constrained")
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        image = _scale(centre, drawn)
        for panel, (label, values) in zip(panels, panels_of.items(), strict=True):
            panel.tick_params(axis="y", length=0)
            panel.imshow(values, cmap=image.cmap, norm=image.norm, aspect="auto", interpolation="nearest")
            panel.set_title(label)
            _layers_below(panel, values.shape[1])
        panels[0].set_yticks(range(rows), [_starred(first, token, text) for token, text in enumerate(tokens)])
        _colour_bar(figure, panels, image, centre, drawn).set_label(unit)
        figure.suptitle(title, fontsize=9)
    return figure


def _bucket_heatmaps(averages: Mapping[str, Average], scheme: Scheme, words: _Words, headline: str) -> Figure:
    """Draw averages, [buckets, L], as heatmaps side by side on one scale around 0."""
    names = SCHEMES[scheme]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(1.9 + 2.15 * len(averages), 5.0), 0.24 * len(names) + 1.5), layout="constrained")
        panels = figure.subplots(1, len(averages), sharey=True, squeeze=False)[0]
        drawn = [found.mean for found in averages.values()]
        image = _scale(0.0, drawn)
        for panel, (part, found) in zip(panels, averages.items(), strict=True):
            panel.patch.set(**NO_TOKEN)
            panel.tick_params(axis="y", length=0)
            panel.imshow(found.mean, cmap=image.cmap, norm=image.norm, aspect="auto", interpolation="nearest")
            panel.set_title(words.titles[part])
            _layers_below(panel, found.mean.shape[1])
        counts = next(iter(averages.values())).n.max(axis=1)
        labels = [f"{BUCKET_LABELS[name]} (n={n})" for name, n in zip(names, counts, strict=True)]
        panels[0].set_yticks(range(len(names)), labels)
        _colour_bar(figure, panels, image, 0.0, drawn).set_label(words.unit)
        figure.suptitle(headline, fontsize=9)
    return figure


def _bucket_lines(averages: Mapping[str, Average], scheme: Scheme, words: _Words, headline: str) -> Figure:
    """Draw averages, [buckets, L], as lines over layers with their intervals, a panel each."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(1.0 + 2.35 * len(averages), 4.6), 3.3), layout="constrained")
        panels = figure.subplots(1, len(averages), sharey=True, squeeze=False)[0]
        for panel, (part, found) in zip(panels, averages.items(), strict=True):
            layers = np.arange(found.mean.shape[1])
            for row, name in enumerate(SCHEMES[scheme]):
                if not found.n[row].any():
                    continue
                colour, dashes = BUCKET_STYLES[name]
                label = f"{BUCKET_LABELS[name]} (n={found.n[row].max()})"
                panel.plot(layers, found.mean[row], color=colour, linestyle=dashes, linewidth=1.3, label=label)
                panel.fill_between(layers, found.low[row], found.high[row], color=colour, alpha=0.15, linewidth=0)
            panel.axhline(0, color="black", linewidth=0.5)
            panel.margins(x=0)
            panel.set_title(words.titles[part])
            _layers_below(panel, len(layers))
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(words.unit)
        columns = 2 if len(averages) == 1 else 3
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(f"{headline}; shaded: 95% intervals", fontsize=9)
    return figure


def _location_words(located: Sequence[LocationGrid]) -> tuple[_Words, str]:
    """Say what scores of an attribution are, in the words of a figure and as its headline."""
    if not located:
        raise InputError("there are no scores to draw")
    function = located[0].attributed_fn
    unit = "p(answer) - p(foil)" if function == "contrast_prob_diff" else function
    n = len({grid.name for grid in located})
    headline = f"Gradient x activation of {unit}\nmean over n={n} fact{'s'[: n != 1]}"
    return _Words(SITE_LABELS, f"score ({unit})"), headline


def _mediator_labels(traced: Sequence[TraceGrid], window: int | None) -> dict[str, str]:
    return {mediator: _label(mediator, window) for mediator in by_mediator(traced)}


G = TypeVar("G", bound=Grid)


def _same_fact(traced: Sequence[G]) -> G:
    """Return the first grid, once it is known that all are of its fact."""
    names = sorted({grid.name for grid in traced})
    if len(names) != 1:
        raise InputError(f"a figure of one fact needs the grids of one, not of {len(names)}: {', '.join(names)}")
    return traced[0]


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


def _layers_below(panel: Axes, n_layers: int) -> None:
    """Mark the layers on the x axis."""
    panel.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    panel.set_xlim(-0.5, n_layers - 0.5)
    panel.set_xlabel("layer")


def _scale(centre: float, drawn: Sequence[Floats]) -> ScalarMappable:
    """Return a linear scale that holds all values: white at ``centre``, purple above it, green below it.

    Both sides are equally steep, so that a pale colour is a small difference on either.
    """
    reach = max(1e-6, *(np.nanmax(np.abs(values - centre)) for values in drawn))
    return ScalarMappable(Normalize(centre - reach, centre + reach), _with_gaps("PRGn_r"))


def _colour_bar(
    figure: Figure, panels: Sequence[Axes], image: ScalarMappable, centre: float, drawn: Sequence[Floats]
) -> Colorbar:
    """Put the part of the scale that is drawn beside the panels."""
    bar = figure.colorbar(image, ax=list(panels), pad=0.015, aspect=30)
    bar.ax.set_ylim(min(centre, *map(np.nanmin, drawn)), max(centre, *map(np.nanmax, drawn)))
    return bar


def _with_gaps(name: str) -> Colormap:
    """Return a colormap that leaves what is no number to the panel's own colour."""
    return matplotlib.colormaps[name].with_extremes(bad="none")


def _starred(grid: Grid, token: int, text: str) -> str:
    """Mark a token of the subject."""
    start, end = grid.subject_span
    return f"{text}*" if start <= token < end else text


def shown(text: str) -> str:
    """Return a token as matplotlib can draw it: white space visible, no formulas, no character the font lacks."""
    known = _characters()
    visible = text.replace("\n", "\u21b5").replace("\t", "\u2192").replace("\r", "\u21b5")
    drawn = "".join(one if ord(one) in known else one.encode("unicode_escape").decode() for one in visible)
    return drawn.replace("$", r"\$") or "\u2205"


@cache
def _characters() -> frozenset[int]:
    """Return the characters of matplotlib's own font."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
