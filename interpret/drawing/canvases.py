"""Heatmaps with token labels and lines over layers, for figures of activations, and the files they are written to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interpret.drawing.palette import diverging, sequential
from interpret.drawing.panels import NO_TOKEN, Sheet
from interpret.errors import InputError, RunError
from interpret.stats import Floats

To = str | Path | None
"""File to write; None for no file."""
UNDATED: dict[str, dict[str, str | None]] = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}
"""Metadata to omit for each suffix, so that the same numbers give the same bytes."""


def canvas(rows: Sequence[str], columns: Sequence[str], *, cell: float = 0.19) -> tuple[Figure, Axes]:
    """Return a figure sized for a grid of cells and their labels; ``cell`` is the size of a cell in inches."""
    label = 0.07 * max(map(len, rows))
    size = max(cell * len(columns) + label + 1.6, 3.4), max(cell * len(rows) + 1.3, 2.2)
    figure = Sheet(figsize=size, layout="constrained")
    return figure, figure.subplots()


def line_canvas(layers: Sequence[int]) -> tuple[Figure, Axes]:
    """Return a figure for lines over layers."""
    figure = Sheet(figsize=(max(4.4, 0.1 * len(layers) + 2.0), 2.6), layout="constrained")
    panel = figure.subplots()
    layer_axis(panel, layers)
    return figure, panel


def layer_axis(panel: Axes, layers: Sequence[int]) -> None:
    """Label the x axis with layers."""
    panel.set_xlabel("layer")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    panel.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)
    panel.spines[["top", "right"]].set_visible(False)


def heatmap(
    figure: Figure,
    panel: Axes,
    values: Floats,
    unit: str,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    reach: float | None = None,
    logarithmic: bool = False,
) -> None:
    """Draw a heatmap with labels and colour bar; cells that are not finite are hatched.

    If there are negative values, the colour scale is symmetric around 0. Otherwise it runs from 0 to ``reach``, by
    default the largest value. ``logarithmic`` is for positive values.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    largest = max(abs(low), abs(high), 1e-12)
    scale: Normalize
    if logarithmic:
        scale = LogNorm(max(low, largest * 1e-6), largest)
    else:
        scale = Normalize(-largest, largest) if low < 0 else Normalize(0, reach or largest)
    colours = diverging() if low < 0 else sequential()
    image = panel.imshow(values, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    panel.tick_params(length=0)
    panel.set_yticks(range(len(rows)), rows)
    panel.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 2 else 0)
    if known.size < values.size:
        panel.patch.set(**NO_TOKEN)
    bar = figure.colorbar(image, ax=panel, pad=0.02, aspect=25)
    bar.set_label(unit)
    if low < 0:
        bar.ax.set_ylim(low, max(high, 0.0))


def thin_ticks(panel: Axes, columns: Sequence[str]) -> None:
    """Label at most 15 of the columns, at equal steps."""
    step = -(-len(columns) // 15)
    panel.set_xticks(range(0, len(columns), step), columns[::step], rotation=0)


def written(figure: Figure, to: To) -> Figure:
    """Write a figure to a file, if one is given, and return the figure."""
    if to is None:
        return figure
    path = Path(to)
    if path.suffix not in UNDATED:
        raise InputError(f"to={str(to)!r}: the file has to end in .png or .pdf")
    try:
        figure.savefig(path, metadata=UNDATED[path.suffix])
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
    return figure
