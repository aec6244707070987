"""Figures of lenses over many prompts, from stored rows; the model is not needed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from interpret.drawing.panels import layer_curves
from interpret.records import LensAverage
from interpret.stats import Average

LINEAR_BELOW = 0.1
"""In nats: the KL is drawn on a logarithmic scale, which is linear below this, because it ends at 0."""


def lens_figure(averages: Sequence[LensAverage]) -> Figure:
    """Draw by layer how often lenses agree with the model's most likely token, and KL(model || lens), one curve each.

    As in Belrose et al. 2023, with 95% intervals over prompts. The last points of the curves are the output of the last
    layer, where all lenses give the model's own distribution.

    Args:
        averages: from ``interpret.probing.lens_averages``, at least one row.
    """
    by_lens: dict[str, list[LensAverage]] = {}
    for one in averages:
        by_lens.setdefault(one.lens, []).append(one)
    n = max(one.n for one in averages)
    figure = layer_curves(
        {
            "agreement with the model's most likely token": _curves(by_lens, "agreement"),
            "KL(model || lens) in nats": _curves(by_lens, "kl"),
        },
        unit="share of prompts",
        headline=f"Lenses by layer, n={n} prompt{'s'[: n != 1]}" + "; shaded: 95% intervals" * (n > 1),
    )
    figure.axes[1].set_yscale("symlog", linthresh=LINEAR_BELOW)
    figure.axes[1].set_ylim(bottom=0)
    return figure


def _curves(by_lens: dict[str, list[LensAverage]], name: str) -> dict[str, Average]:
    """Return one quantity of each lens over its states."""
    found = {}
    for lens, rows in by_lens.items():
        mean, low, high = (np.array([getattr(one, name + end) for one in rows]) for end in ("", "_low", "_high"))
        found[lens] = Average(mean, low, high, np.array([one.n for one in rows]))
    return found
