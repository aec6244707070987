"""Rows of facts located by attribution -> grids and averages over prompts: what summaries and figures are made from."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from interpret.facts.buckets import SCHEMES, Scheme
from interpret.facts.grids import Grid, bucket_averages, tokens_by_layers
from interpret.records import LocationAverage, LocationCell
from interpret.stats import Average


@dataclass(frozen=True, kw_only=True)
class LocationGrid(Grid):
    """The scores of one fact at one site; its effects are scores."""

    site: str
    """``resid_post``, ``attn_out`` or ``mlp_out``."""
    attributed_fn: str
    """What is attributed."""


def location_grids(rows: Iterable[LocationCell]) -> list[LocationGrid]:
    """Put rows back into one grid a fact and site, in the order in which they first appear.

    Raises:
        InputError: if there are no rows, or a grid has a cell missing or twice.
    """
    return [
        LocationGrid(
            name=ordered[0].name,
            site=ordered[0].site,
            answer=ordered[0].answer,
            attributed_fn=ordered[0].attributed_fn,
            tokens=tuple(cell.token for cell in ordered[:: shape[1]]),
            subject_span=subject_span,
            effects=np.array([cell.score for cell in ordered]).reshape(shape),
        )
        for ordered, shape, subject_span in tokens_by_layers(rows, "site")
    ]


def location_summary(located: Iterable[LocationGrid], *, scheme: Scheme = "rome") -> list[LocationAverage]:
    """Return the mean scores of every site, bucket and layer, leaving out buckets of no prompt.

    Raises:
        InputError: as ``location_averages`` does.
    """
    return [
        LocationAverage(
            site=site,
            bucket=bucket,
            layer_idx=layer,
            mean_score=float(found.mean[row, layer]),
            low=float(found.low[row, layer]),
            high=float(found.high[row, layer]),
            n=int(found.n[row, layer]),
        )
        for site, found in location_averages(located, scheme=scheme).items()
        for row, bucket in enumerate(SCHEMES[scheme])
        for layer in range(found.mean.shape[1])
        if found.n[row, layer]
    ]


def by_site(located: Iterable[LocationGrid]) -> dict[str, list[LocationGrid]]:
    """Sort grids by site, in the order in which sites first appear."""
    found: dict[str, list[LocationGrid]] = {}
    for grid in located:
        found.setdefault(grid.site, []).append(grid)
    return found


def location_averages(located: Iterable[LocationGrid], *, scheme: Scheme = "rome") -> dict[str, Average]:
    """Average scores site by site, [buckets, L]: each prompt's bucket first, then prompts, as traces are averaged.

    Raises:
        InputError: if there is no grid, the scheme is unknown, or the grids differ in layers.
    """
    return {site: bucket_averages(of_one, scheme=scheme) for site, of_one in by_site(located).items()}
