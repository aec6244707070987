"""Rows of a table -> grids of tokens by layers, and their averages by kind of token."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme, average_buckets
from interpret.records import LocationCell, TraceCell
from interpret.stats import Average, Floats

C = TypeVar("C", TraceCell, LocationCell)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One number for each of T tokens and L layers of one fact."""

    name: str
    """The fact's."""
    answer: str
    """The text whose probability is read."""
    tokens: tuple[str, ...]
    """[T] texts."""
    subject_span: tuple[int, int]
    """First and one past the last token of the subject."""
    effects: Floats
    """[T, L], indirect effects of a trace, or scores of an attribution."""


def tokens_by_layers(rows: Iterable[C], part: str) -> Iterator[tuple[list[C], tuple[int, int], tuple[int, int]]]:
    """Sort rows into the grids they came from, in the order in which those first appear.

    Args:
        rows: of any facts, in any order.
        part: the column that, with the fact's name, tells grids apart.

    Yields:
        The T * L cells of a grid, token by token; (T, L); first and one past the last token of the subject.

    Raises:
        InputError: if there are no rows, or a grid has a cell missing or twice, or no subject.
    """
    cells: dict[tuple[str, str], list[C]] = {}
    for row in rows:
        cells.setdefault((row.name, getattr(row, part)), []).append(row)
    if not cells:
        raise InputError("the table has no rows: no fact was done yet")
    for (name, of_part), of_one in cells.items():
        what = f"the grid of {name!r} by {of_part!r}"
        ordered = sorted(of_one, key=lambda cell: (cell.token_idx, cell.layer_idx))
        n_tokens, n_layers = ordered[-1].token_idx + 1, ordered[-1].layer_idx + 1
        places = [(cell.token_idx, cell.layer_idx) for cell in ordered]
        if places != [(token, layer) for token in range(n_tokens) for layer in range(n_layers)]:
            raise InputError(
                f"{what} has {len(places)} rows that are not each of {n_tokens} tokens by {n_layers} layers once"
            )
        subject = [cell.token_idx for cell in ordered if cell.in_subject]
        if not subject:
            raise InputError(f"{what} has no token of the subject")
        yield ordered, (n_tokens, n_layers), (subject[0], subject[-1] + 1)


def bucket_averages(grids: Sequence[Grid], *, scheme: Scheme = "rome") -> Average:
    """Average the effects of grids of one kind, bucket by bucket, [buckets, L]; of traces this is the AIE.

    Args:
        grids: traces by one mediator, or scores at one site.
        scheme: how tokens are sorted into buckets.

    Raises:
        InputError: if there is no grid, the scheme is unknown, or the grids differ in layers.
    """
    depths = sorted({grid.effects.shape[1] for grid in grids})
    if len(depths) > 1:
        raise InputError(f"grids of models with {' and '.join(map(str, depths))} layers have no average")
    return average_buckets([grid.effects for grid in grids], [grid.subject_span for grid in grids], scheme=scheme)


@dataclass(frozen=True)
class BucketPeak:
    """Where the average indirect effect of one bucket is largest."""

    bucket: str
    """One of ``SCHEMES``."""
    layer_idx: int
    """The layer of the peak."""
    mean: float
    """AIE there."""
    low: float
    """Its interval's lower end."""
    high: float
    """Its upper end."""
    n: int
    """Prompts that have a token of the bucket."""


def bucket_peaks(averages: Average, *, scheme: Scheme = "rome") -> list[BucketPeak]:
    """Tell the peak layer of each bucket, leaving out buckets of no prompt.

    Args:
        averages: [buckets, L], as ``bucket_averages`` returns.
        scheme: the one they were made with.
    """
    found = []
    for row, bucket in enumerate(SCHEMES[scheme]):
        if averages.n[row].any():
            layer = int(averages.mean[row].argmax())
            mean, low, high = (float(part[row, layer]) for part in (averages.mean, averages.low, averages.high))
            found.append(BucketPeak(bucket, layer, mean, low, high, int(averages.n[row, layer])))
    return found


G = TypeVar("G", bound=Grid)


def same_fact(traced: Sequence[G]) -> G:
    """Return the first grid, once it is known that all are of its fact."""
    names = sorted({grid.name for grid in traced})
    if len(names) != 1:
        raise InputError(f"a figure of one fact needs the grids of one, not of {len(names)}: {', '.join(names)}")
    return traced[0]
