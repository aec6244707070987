"""Convert rows of a table to grids of tokens by layers, and average grids by token bucket."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeVar

from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme, average_buckets
from interpret.finite import Tally
from interpret.records import LocationCell, TraceCell
from interpret.stats import Average, Floats

C = TypeVar("C", TraceCell, LocationCell)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One number per token and layer of one fact."""

    name: str
    """Name of the fact."""
    answer: str
    """Text of the token whose probability is measured."""
    tokens: tuple[str, ...]
    """[T] texts of the tokens."""
    subject_span: tuple[int, int]
    """First and one past the last token of the subject."""
    effects: Floats
    """[T, L], indirect effects of a trace or attribution scores."""


G = TypeVar("G", bound=Grid)


def tokens_by_layers(rows: Iterable[C], *parts: str) -> Iterator[tuple[list[C], tuple[int, int], tuple[int, int]]]:
    """Group rows into grids, in order of first appearance.

    Args:
        rows: rows of any facts, in any order.
        parts: columns that identify a grid, together with the fact's name.

    Yields:
        The T * L rows of a grid, ordered by token and layer; (T, L); first and one past the last token of the subject.

    Raises:
        InputError: if there are no rows, or a grid has missing or repeated cells, or no token of the subject.
    """
    cells: dict[tuple[str, tuple[str, ...]], list[C]] = {}
    for row in rows:
        cells.setdefault((row.name, tuple(getattr(row, part) for part in parts)), []).append(row)
    if not cells:
        raise InputError("no rows: no fact is finished yet, or all were dropped, see 'dropped' in manifest.json")
    for (name, of_parts), of_one in cells.items():
        what = f"the grid of {name!r} by {', '.join(map(repr, of_parts))}"
        ordered = sorted(of_one, key=lambda cell: (cell.token_idx, cell.layer_idx))
        n_tokens, n_layers = ordered[-1].token_idx + 1, ordered[-1].layer_idx + 1
        places = [(cell.token_idx, cell.layer_idx) for cell in ordered]
        if places != [(token, layer) for token in range(n_tokens) for layer in range(n_layers)]:
            raise InputError(
                f"{what}: expected {n_tokens} x {n_layers} rows, one per token and layer; found {len(places)}, "
                "with missing or repeated cells"
            )
        subject = [cell.token_idx for cell in ordered if cell.in_subject]
        if not subject:
            raise InputError(f"{what}: no row has in_subject set")
        yield ordered, (n_tokens, n_layers), (subject[0], subject[-1] + 1)


def not_finite(grids: Iterable[Grid]) -> str:
    """Return a message that counts the cells of grids whose effect is not finite; "" if all are finite."""
    tally = Tally()
    for grid in grids:
        tally.add(grid.effects)
    return tally.left_out("cells", "averages and peaks")


def bucket_averages(grids: Sequence[Grid], *, scheme: Scheme = "rome") -> Average:
    """Average the effects of grids, bucket by bucket, [buckets, L]; for traces, this is the AIE.

    Args:
        grids: grids of one mediator and metric, or of one site.
        scheme: bucket scheme, ``rome`` or ``kt``.

    Raises:
        InputError: if there is no grid, the scheme is unknown, or the grids differ in their number of layers.
    """
    depths = sorted({grid.effects.shape[1] for grid in grids})
    if len(depths) > 1:
        raise InputError(f"cannot average grids with different numbers of layers: {', '.join(map(str, depths))}")
    return average_buckets([grid.effects for grid in grids], [grid.subject_span for grid in grids], scheme=scheme)


def by_part(grids: Iterable[G], part: str) -> dict[str, list[G]]:
    """Group grids by an attribute, such as ``mediator``, ``metric`` or ``site``, in order of first appearance."""
    found: dict[str, list[G]] = {}
    for grid in grids:
        found.setdefault(getattr(grid, part), []).append(grid)
    return found


FEWEST = 10
"""Averages over fewer facts are told to be unreliable: bootstrap intervals of so few are too narrow."""


@dataclass(frozen=True)
class BucketMean:
    """The mean over prompts of one bucket at one layer."""

    bucket: str
    """A bucket of ``SCHEMES``."""
    layer_idx: int
    mean: float
    low: float
    """Lower bound of the confidence interval; NaN for one prompt."""
    high: float
    """Upper bound of the confidence interval."""
    n: int
    """Number of prompts that have a token with a finite effect in the bucket."""


def bucket_means_of(averages: Average, *, scheme: Scheme = "rome") -> list[BucketMean]:
    """List averages, [buckets, L], ordered by bucket and layer, without buckets that no prompt has."""
    return [
        BucketMean(
            bucket=bucket,
            layer_idx=layer,
            mean=float(averages.mean[row, layer]),
            low=float(averages.low[row, layer]),
            high=float(averages.high[row, layer]),
            n=int(averages.n[row, layer]),
        )
        for row, bucket in enumerate(SCHEMES[scheme])
        for layer in range(averages.mean.shape[1])
        if averages.n[row, layer]
    ]


def bucket_peaks(averages: Average, *, scheme: Scheme = "rome", direction: Literal[1, -1] = 1) -> list[BucketMean]:
    """Return, for each bucket, the layer with the largest mean, without buckets that no prompt has.

    Args:
        averages: [buckets, L], as ``bucket_averages`` returns.
        scheme: the bucket scheme of the averages.
        direction: -1 for the layer with the lowest mean instead, for effects that are drops.
    """
    means = bucket_means_of(averages, scheme=scheme)
    return [
        max(of_one, key=lambda one: direction * one.mean) for _, of_one in groupby(means, key=lambda one: one.bucket)
    ]


def too_few(means: Iterable[BucketMean]) -> str:
    """Return a message about averages over too few facts; "" if there are none.

    >>> too_few([BucketMean("last", 3, 0.2, 0.1, 0.3, n=4)])
    'averages over fewer than 10 facts are unreliable, and their 95% intervals too narrow; here are averages over 4'
    """
    counts = {one.n for one in means}
    few = sorted(count for count in counts if count < FEWEST)
    if not few:
        return ""
    if counts == {1}:
        return "these are the numbers of a single fact, not averages; there are no intervals"
    single = ", and of 1 there is no interval" if few[0] == 1 else ""
    over = str(few[0]) if len(few) == 1 else f"{few[0]} to {few[-1]}"
    return (
        f"averages over fewer than {FEWEST} facts are unreliable, and their 95% intervals too narrow; "
        f"here are averages over {over}{single}"
    )


def same_fact(traced: Sequence[G]) -> G:
    """Check that all grids belong to one fact, and return the first."""
    names = sorted({grid.name for grid in traced})
    if len(names) != 1:
        raise InputError(f"a figure of one fact needs grids of one fact; got {len(names)}: {', '.join(names)}")
    return traced[0]
