"""Convert rows of located facts to grids and to averages over prompts, for summaries and figures."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from interpret.facts.buckets import Scheme
from interpret.facts.grids import Grid, bucket_averages, bucket_means_of, by_part, tokens_by_layers
from interpret.records import LocationAverage, LocationCell
from interpret.stats import Average


@dataclass(frozen=True, kw_only=True)
class LocationGrid(Grid):
    """The scores of one fact at one site, as ``effects``, [T, L]."""

    site: str
    """``resid_post``, ``attn_out``, ``mixer_out`` or ``mlp_out``."""
    attributed_fn: str
    """The attributed function."""


def location_grids(rows: Iterable[LocationCell]) -> list[LocationGrid]:
    """Collect rows into one grid per fact and site, in order of first appearance.

    Raises:
        InputError: if there are no rows, or a grid has missing or repeated cells, or no token of the subject.
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
    """Return the mean scores of every site, bucket and layer, without buckets that no prompt has.

    Raises:
        InputError: as ``location_averages`` raises.
    """
    return [
        LocationAverage(
            site=site,
            bucket=one.bucket,
            layer_idx=one.layer_idx,
            mean_score=one.mean,
            low=one.low,
            high=one.high,
            n=one.n,
        )
        for site, found in location_averages(located, scheme=scheme).items()
        for one in bucket_means_of(found, scheme=scheme)
    ]


def location_averages(located: Iterable[LocationGrid], *, scheme: Scheme = "rome") -> dict[str, Average]:
    """Return average scores per site, [buckets, L]: mean over the tokens of each prompt's bucket, then over prompts.

    Raises:
        InputError: if the scheme is unknown, or the grids differ in their number of layers.
    """
    return {site: bucket_averages(of_one, scheme=scheme) for site, of_one in by_part(located, "site").items()}
