"""Panels of numbers over layers: heatmaps by token or by token bucket, and lines with confidence intervals.

Each function returns a matplotlib figure; ``save`` writes it as PNG and PDF, with the same bytes for the same numbers.
"""

import io
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from interpret.drawing.palette import LINES, OKABE_ITO, diverging
from interpret.stats import Average, Floats
from interpret.storage.disk import replace_whole

BUCKET_LABELS = {
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_subsequent": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}
# The line styles distinguish lines in black-and-white print.
BUCKET_STYLES = {
    "first_subject": (OKABE_ITO["sky"], (0, (1, 1))),
    "middle_subject": (OKABE_ITO["green"], (0, (4, 1.5))),
    "last_subject": (OKABE_ITO["vermilion"], "-"),
    "first_subsequent": (OKABE_ITO["purple"], (0, (5, 1, 1, 1))),
    "further": (OKABE_ITO["grey"], (0, (3, 1, 1, 1, 1, 1))),
    "last": (OKABE_ITO["blue"], "-"),
}
_FONT = "DejaVu Sans"  # part of matplotlib
_FONTS_OF_MORE_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "IPAexGothic", "WenQuanYi Zen Hei", "Hiragino Sans",
    "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Droid Sans Fallback", "Arial Unicode MS",
    "Noto Sans Thai", "Noto Sans Devanagari", "Symbola", "Noto Emoji",
)  # fmt: skip


def _fonts() -> list[str]:
    """Return the fonts to draw text with: matplotlib's own, then installed ones that have more scripts."""
    installed = {font.name for font in fontManager.ttflist}
    return [_FONT, *(name for name in _FONTS_OF_MORE_SCRIPTS if name in installed)]


def _is_not_about_weight(record: logging.LogRecord) -> bool:
    return "Failed to find font weight" not in record.getMessage()


# Some of these fonts exist in a single weight, such as 500; matplotlib would say so for every figure.
logging.getLogger("matplotlib.font_manager").addFilter(_is_not_about_weight)


_STYLE: dict[Any, Any] = {  # Any: matplotlib types the keys as literals
    "font.family": _fonts(),
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


def styled() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn and saved in the style of all figures."""
    return matplotlib.rc_context(_STYLE)


NO_TOKEN = {"facecolor": "white", "edgecolor": "#bbbbbb", "hatch": "////"}
"""Style of cells without a value, such as a bucket without a token in any prompt, or one that is not finite."""


class Sheet(Figure):
    """A figure that a notebook displays as the last line of a cell; pyplot, which would keep it open, is not used."""

    def suptitle(self, t: str, **kwargs: Any) -> Text:
        """Set the title of the figure; a line that is wider than the figure is broken."""
        return super().suptitle(t, **{"wrap": True, **kwargs})

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with styled():
            self.savefig(file, format="png", dpi=120)
        return file.getvalue()


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF, without creation dates, so that the same numbers give the same bytes.

    Args:
        figure: the figure to write.
        stem: the path without its suffix; its folder has to exist.

    Returns:
        The paths of the two files.

    Raises:
        RunError: if a file cannot be written.
    """
    written = []
    for ending, undated in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Creator": None})):
        file = io.BytesIO()
        with styled():
            figure.savefig(file, format=ending, metadata=undated)
        path = stem.with_name(f"{stem.name}.{ending}")
        replace_whole(path, file.getvalue())
        written.append(path)
    return written


@dataclass(frozen=True)
class PanelWords:
    """Titles and unit of a figure of averages."""

    titles: Mapping[str, str]
    """Title of each panel, by the key of its average."""
    unit: str
    """Unit of the numbers, shown at the colour bar or the y axis."""


def token_heatmaps(
    tokens: Sequence[str],
    starred: Collection[int],
    panels_of: Mapping[str, Floats],
    *,
    centre: float,
    unit: str,
    title: str,
) -> Figure:
    """Draw heatmaps of one prompt side by side, one per panel, with a shared colour scale symmetric around ``centre``.

    Values that are not finite are hatched, and left out of the scale.

    Args:
        tokens: [T] texts of the tokens.
        starred: indices of the tokens to mark with a star, such as those of the subject.
        panels_of: one array, [T, L], per panel, by the title of the panel.
        centre: the value shown as white.
        unit: unit of the numbers.
        title: title of the figure.
    """
    tokens = [shown(token) for token in tokens]
    rows, longest, drawn = len(tokens), max(map(len, tokens)), list(panels_of.values())
    # In inches: one line of text per row, and space for the longest token on the left.
    height, left = 0.17 * rows + 1.5, 0.45 + 0.066 * (longest + 1)
    widths = 2.15 * len(drawn)
    with styled():
        figure = Sheet(figsize=(max(left + widths + 0.75, 5.0), height), layout="constrained")
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        image = scale_around(centre, drawn)
        for panel, (label, values) in zip(panels, panels_of.items(), strict=True):
            panel.patch.set(**NO_TOKEN)
            panel.tick_params(axis="y", length=0)
            panel.imshow(values, cmap=image.cmap, norm=image.norm, aspect="auto", interpolation="nearest")
            panel.set_title(label)
            layers_below(panel, values.shape[1])
        panels[0].set_yticks(range(rows), [text + "*" * (token in starred) for token, text in enumerate(tokens)])
        colour_bar(figure, panels, image, centre, drawn).set_label(unit)
        figure.suptitle(title, fontsize=9)
    return figure


def bucket_heatmaps(averages: Mapping[str, Average], names: Sequence[str], words: PanelWords, headline: str) -> Figure:
    """Draw averages, [buckets, L], as heatmaps side by side, with a shared colour scale symmetric around 0.

    Buckets that no prompt has are left out, unless no prompt has any.
    """
    present = np.any([found.n.any(axis=1) for found in averages.values()], axis=0)  # [buckets]
    present |= not present.any()
    names = [name for name, here in zip(names, present, strict=True) if here]
    with styled():
        figure = Sheet(figsize=(max(1.9 + 2.15 * len(averages), 5.0), 0.24 * len(names) + 1.5), layout="constrained")
        panels = figure.subplots(1, len(averages), sharey=True, squeeze=False)[0]
        drawn = [found.mean[present] for found in averages.values()]
        image = scale_around(0.0, drawn)
        for panel, (part, means) in zip(panels, zip(averages, drawn, strict=True), strict=True):
            panel.patch.set(**NO_TOKEN)
            panel.tick_params(axis="y", length=0)
            panel.imshow(means, cmap=image.cmap, norm=image.norm, aspect="auto", interpolation="nearest")
            panel.set_title(words.titles[part])
            layers_below(panel, means.shape[1])
        counts = next(iter(averages.values())).n.max(axis=1)[present]
        labels = [f"{BUCKET_LABELS[name]} (n={n})" for name, n in zip(names, counts, strict=True)]
        panels[0].set_yticks(range(len(names)), labels)
        colour_bar(figure, panels, image, 0.0, drawn).set_label(words.unit)
        figure.suptitle(headline, fontsize=9)
    return figure


def bucket_lines(averages: Mapping[str, Average], names: Sequence[str], words: PanelWords, headline: str) -> Figure:
    """Draw averages, [buckets, L], as lines over layers with confidence intervals, one panel per average."""
    with styled():
        figure = Sheet(figsize=(max(1.0 + 2.35 * len(averages), 4.6), 3.3), layout="constrained")
        panels = figure.subplots(1, len(averages), sharey=True, squeeze=False)[0]
        for panel, (part, found) in zip(panels, averages.items(), strict=True):
            layers = np.arange(found.mean.shape[1])
            for row, name in enumerate(names):
                if not found.n[row].any():
                    continue
                colour, dashes = BUCKET_STYLES[name]
                label = f"{BUCKET_LABELS[name]} (n={found.n[row].max()})"
                panel.plot(layers, found.mean[row], color=colour, linestyle=dashes, linewidth=1.3, label=label)
                panel.fill_between(layers, found.low[row], found.high[row], color=colour, alpha=0.15, linewidth=0)
            panel.axhline(0, color="black", linewidth=0.5)
            panel.margins(x=0)
            panel.set_title(words.titles[part])
            layers_below(panel, len(layers))
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(words.unit)
        columns = 2 if len(averages) == 1 else 3
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
        shaded = "; shaded: 95% intervals" if any((found.n > 1).any() for found in averages.values()) else ""
        figure.suptitle(headline + shaded, fontsize=9)
    return figure


def layer_curves(panels_of: Mapping[str, Mapping[str, Average]], *, unit: str, headline: str) -> Figure:
    """Draw curves over layers with 95% intervals, one panel for each entry.

    Args:
        panels_of: title of each panel -> label of each curve -> its average, [L].
        unit: unit of the numbers, shown at the y axis.
        headline: title of the figure.
    """
    with styled():
        figure = Sheet(figsize=(max(1.0 + 2.6 * len(panels_of), 4.6), 3.3), layout="constrained")
        panels = figure.subplots(1, len(panels_of), squeeze=False)[0]
        for panel, (title, curves) in zip(panels, panels_of.items(), strict=True):
            for number, (label, found) in enumerate(curves.items()):
                colour, dashes = LINES[number % len(LINES)]
                layers = np.arange(len(found.mean))
                panel.plot(layers, found.mean, color=colour, linestyle=dashes, linewidth=1.3, label=label)
                panel.fill_between(layers, found.low, found.high, color=colour, alpha=0.15, linewidth=0)
                layers_below(panel, len(layers))
            panel.axhline(0, color="black", linewidth=0.5)
            panel.set_title(title)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(unit)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(headline, fontsize=9)
    return figure


def layers_below(panel: Axes, n_layers: int) -> None:
    """Label the x axis with layers."""
    panel.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    panel.set_xlim(-0.5, n_layers - 0.5)
    panel.set_xlabel("layer")


def scale_around(centre: float, drawn: Sequence[Floats]) -> ScalarMappable:
    """Return a linear colour scale symmetric around ``centre``, covering all finite values.

    ``centre`` is white, values above are blue, values below orange.
    """
    reach = np.abs(_finite_values(drawn) - centre).max(initial=1e-6)
    return ScalarMappable(Normalize(centre - reach, centre + reach), diverging())


def colour_bar(
    figure: Figure, panels: Sequence[Axes], image: ScalarMappable, centre: float, drawn: Sequence[Floats]
) -> Colorbar:
    """Add a colour bar beside the panels, cut to the range of the values and ``centre``, labelled at both ends."""
    bar = figure.colorbar(image, ax=list(panels), pad=0.015, aspect=30)
    values = _finite_values(drawn)
    if values.size:
        bar_ends(bar, min(centre, float(values.min())), max(centre, float(values.max())), centre)
    return bar


def bar_ends(bar: Colorbar, low: float, high: float, centre: float) -> None:
    """Cut a colour bar to a range, and label its ends, its centre, and round numbers that are not close to these."""
    reach = (high - low) or 1.0
    bar.ax.set_ylim(low, high if high > low else low + 1e-6)
    kept = [low, high]
    for tick in map(float, [centre, *MaxNLocator(nbins=5).tick_values(low, high)]):
        if low <= tick <= high and min(abs(tick - one) for one in kept) > 0.09 * reach:
            kept.append(tick)
    bar.set_ticks(sorted(kept), labels=[_tick(tick, reach) for tick in sorted(kept)])
    bar.ax.minorticks_off()


def _tick(value: float, reach: float) -> str:
    """Return the label of a tick: three decimals, or two digits for a small range; ``<0.001`` for a tiny number."""
    if value == 0:
        return "0"
    if abs(value) < 0.001 <= reach:
        return "<0.001" if value > 0 else ">−0.001"
    text = f"{value:.3f}" if 0.01 <= reach < 10 else f"{value:.3g}"
    return (text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text).replace("-", "−")


def _finite_values(drawn: Sequence[Floats]) -> Floats:
    """Return the finite values of arrays, in one dimension."""
    flat = np.concatenate([np.zeros(0), *(np.ravel(values) for values in drawn)])
    return flat[np.isfinite(flat)]


def shown(text: str) -> str:
    """Return a token as matplotlib can draw it: line ends and tabs visible, no math mode, missing glyphs escaped."""
    known = _characters()
    visible = text.replace("\n", "\u21b5").replace("\t", "\u2192").replace("\r", "\u21b5")
    visible = visible if visible.strip() else visible.replace(" ", "\u00b7")
    drawn = "".join(one if ord(one) in known else one.encode("unicode_escape").decode() for one in visible)
    return drawn.replace("$", r"\$") or "\u2205"


@cache
def _characters() -> frozenset[int]:
    """Return the characters that the fonts of figures have."""
    return frozenset(char for name in _STYLE["font.family"] for char in get_font(findfont(name)).get_charmap())
