"""The index of the pages of several facts: the facts in a table, and averages over those that the model knows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interpret.display.heatmaps import readable, small_probability
from interpret.display.page import shade, shades
from interpret.factpages.agreement import Agreement, agreements, mean_agreements
from interpret.factpages.grids import COMPARED, FactGrids
from interpret.factpages.sentences import AMONG_WORDS, interval
from interpret.factpages.stored import StoredFact
from interpret.facts.buckets import SCHEMES, average_buckets
from interpret.facts.grids import FEWEST, BucketMean, bucket_peaks
from interpret.pages.frame import page_pieces
from interpret.pages.provenance import leaves, model_name
from interpret.records import EXACT
from interpret.stats import Floats

MAPS = {
    "trace": ("Causal tracing", "mean indirect effect of restoring the layer's output"),
    "attribution": ("Attribution", "mean activation × gradient of the layer's output"),
    "lens": ("Logit lens", "mean reciprocal rank of the answer: 1 if it is the likeliest token in all facts"),
}


@dataclass(frozen=True)
class _Fact:
    """One fact of the index."""

    name: str
    fact: Mapping[str, Any]
    known: bool
    says: str
    p: float
    """Probability of the answer."""
    agreements: Sequence[Agreement]
    subject_span: tuple[int, int]
    estimated: bool
    """Whether some effects of tracing are estimates."""
    maps: Mapping[str, Floats]
    """Method -> [T, L], what is averaged."""


def index_pieces(
    facts: Iterable[StoredFact], manifest: Mapping[str, Any], page_of: Callable[[str], str]
) -> Iterator[str]:
    """Yield the index in pieces.

    Args:
        facts: the finished facts of a run; of each, only what is averaged is kept.
        manifest: the manifest of the run.
        page_of: returns the address of the page of a fact, relative to the index.
    """
    rows = [_fact(one) for one in facts]
    known = [row for row in rows if row.known]
    means = mean_agreements([row.agreements for row in known]) if known else []
    yield from page_pieces(
        __package__,
        "index",
        more_style=shades(),
        title=f"{len(rows)} facts by every method",
        model=model_name(manifest),
        rows=rows,
        known=known,
        few=len(known) < FEWEST,
        estimated=any(row.estimated for row in rows),
        fewest=FEWEST,
        dropped=manifest.get("dropped", {}),
        means=[(f"{COMPARED[one.first]} and {COMPARED[one.second]}", AMONG_WORDS[one.among], one) for one in means],
        maps=[_map(name, known) for name in MAPS] if known else [],
        interval=interval,
        page_of=page_of,
        signed=_signed,
        small=small_probability,
        readable=readable,
        provenance=leaves(manifest.get("identity", {})) + leaves(manifest.get("circumstances", {})),
    )


def _fact(stored: StoredFact) -> _Fact:
    grids, answer = FactGrids.of(stored.cells), stored.details["answer"]
    with np.errstate(divide="ignore"):
        maps = {**grids.scores, "lens": -1 / grids.scores["lens"]}
    return _Fact(
        stored.name,
        stored.details["fact"],
        bool(answer["known"]),
        str(answer["continuation"]),
        stored.cells[0].clean,
        agreements(grids),
        grids.subject_span,
        any(cell.hidden_method != EXACT for cell in stored.cells),
        maps,
    )


def _map(name: str, facts: Sequence[_Fact]) -> dict[str, Any]:
    """Return the average of one method, buckets of tokens by layers, and the peak of each bucket with its interval."""
    found = average_buckets([fact.maps[name] for fact in facts], [fact.subject_span for fact in facts])
    largest = float(np.nanmax(np.abs(found.mean))) if np.isfinite(found.mean).any() else 0.0
    title, about = MAPS[name]
    peaks = {one.bucket: one for one in bucket_peaks(found)}
    return {
        "title": title,
        "about": about,
        "layers": range(found.mean.shape[1]),
        "rows": [
            {
                "bucket": bucket.replace("_", " "),
                "cells": [(shade(value, largest), _signed(value)) for value in values],
                "peak": _peak(peaks[bucket]) if bucket in peaks else None,
            }
            for bucket, values in zip(SCHEMES["rome"], found.mean.tolist(), strict=True)
        ],
    }


def _peak(found: BucketMean) -> str:
    """Return the peak layer of a bucket, with its mean and the interval; a single fact has none."""
    text = f"layer {found.layer_idx}: {_signed(found.mean)}"
    return text if found.n == 1 else f"{text} ({_signed(found.low)} to {_signed(found.high)}, {found.n} facts)"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if np.isfinite(value) else "none"
