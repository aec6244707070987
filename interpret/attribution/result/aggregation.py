"""Aggregation and tables: ``Attribution.aggregate`` and ``to_frame``. The input is never changed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd

from interpret.attribution.methods.registry import How, reduction_of
from interpret.attribution.result.aligning import aligned
from interpret.attribution.result.scores import Attributed, AttributionScores, ScoreArray, Spans
from interpret.errors import InputError, unknown
from interpret.prompts.spelling import join_pieces

HOWS: dict[How, Callable[[ScoreArray], ScoreArray]] = {
    "sum": lambda values: values.sum(-1),
    "l2": lambda values: np.sqrt((values**2).sum(-1)),
    "mean": lambda values: values.mean(-1),
}
MERGES: dict[str, Callable[[ScoreArray], ScoreArray]] = {"sum": np.sum, "mean": np.mean, "product": np.prod}
COLUMNS = ("input", "side", "activation", "step", "step_position", "step_token", "position", "token", "score")
Ranges = list[tuple[int, int]]
A = TypeVar("A", bound=AttributionScores)


def aggregate(
    attribution: A,
    how: How | None,
    normalize: bool,
    spans: Spans | None,
    subwords: bool,
    minus: A | None,
    align: bool = False,
) -> A:
    """Return an aggregated attribution; see ``Attribution.aggregate``."""
    if how is None:
        how = reduction_of(attribution.info.method)
    if how not in HOWS:
        raise InputError(unknown("how", how, HOWS))
    if spans is not None and subwords:
        raise InputError("spans and subwords both select tokens to merge; give only one of them")
    sequences = [_reduced(one, how) for one in attribution.sequences]
    done: list[str] = [how]
    if align and minus is None:
        raise InputError("align is for minus: give the attribution of the other prompts, too")
    if minus is not None:
        others = [_reduced(one, how) for one in minus.sequences]
        _check_same_number(sequences, others)
        if align:
            both = [aligned(*pair, number) for number, pair in enumerate(zip(sequences, others, strict=True))]
            sequences, others = [one for one, _ in both], [other for _, other in both]
            done.append("align")
        _check_same_tokens(sequences, others)
        sequences = [_minus(one, other) for one, other in zip(sequences, others, strict=True)]
        done.append("minus")
    aggregates = attribution.info.step_aggregates
    if spans is not None:
        if len(spans) != len(sequences):
            raise InputError(f"spans has {len(spans)} entries for {len(sequences)} inputs; give one list for each")
        pairs_of = enumerate(zip(sequences, spans, strict=True))
        sequences = [merged(one, own, aggregates, number) for number, (one, own) in pairs_of]
        done.append("spans")
    if subwords:
        sequences = [_with_words(one, aggregates) for one in sequences]
        done.append("subwords")
    if normalize:
        sequences = [_normalised(one) for one in sequences]
        done.append("normalize")
    info = replace(attribution.info, aggregation=(*attribution.info.aggregation, *done))
    return replace(attribution, sequences=sequences, info=info)


def _mapped(one: Attributed, change: Callable[[ScoreArray, str], ScoreArray]) -> Attributed:
    """Return an input with changed scores; ``change`` takes each array and its side, ``target`` or ``source``."""
    return replace(
        one,
        scores=None if one.scores is None else change(one.scores, "target"),
        layer_scores={name: change(values, "target") for name, values in one.layer_scores.items()},
        source_scores=None if one.source_scores is None else change(one.source_scores, "source"),
        step_scores=dict(one.step_scores),
        details=dict(one.details),
    )


def _reduced(one: Attributed, how: How) -> Attributed:
    return _mapped(one, lambda values, _: HOWS[how](values) if values.ndim == 3 else values.copy())


def _check_same_number(sequences: Sequence[Attributed], others: Sequence[Attributed]) -> None:
    if len(sequences) != len(others):
        raise InputError(f"minus has {len(others)} inputs, this attribution {len(sequences)}")


def _check_same_tokens(sequences: Sequence[Attributed], others: Sequence[Attributed]) -> None:
    for number, (one, other) in enumerate(zip(sequences, others, strict=True)):
        same = [(each.tokens, each.start, each.stop, each.source_tokens, set(each.parts())) for each in (one, other)]
        if same[0] != same[1]:
            raise InputError(
                f"minus has other tokens, steps or activations at input {number}; both must have the "
                "same, unless align=True merges the tokens that differ"
            )


def _minus(one: Attributed, other: Attributed) -> Attributed:
    taken = other.parts()
    found = {key: values - taken[key] for key, values in one.parts().items()}
    common = [name for name in one.step_scores if name in other.step_scores]
    return replace(
        one,
        scores=found.get(("target", "")),
        layer_scores={name: found["target", name] for name in one.layer_scores},
        source_scores=found.get(("source", "")),
        step_scores={name: one.step_scores[name] - other.step_scores[name] for name in common},
        details={},
    )


def _normalised(one: Attributed) -> Attributed:
    """Divide each step by the sum of its absolute scores: source and target together, activations separately."""
    together = [values for (_, name), values in one.parts().items() if not name]
    total = sum(map(_size, together), np.zeros(()))

    def shares(values: ScoreArray, _: str) -> ScoreArray:
        inputs = any(values is each for each in together)
        size = total if inputs else _size(values)
        return values / np.where(size == 0, 1, size)

    return _mapped(one, shares)


def _size(values: ScoreArray) -> ScoreArray:
    """Return the sum of the absolute scores of each step, without those that are not finite, [G]."""
    return np.where(np.isfinite(values), np.abs(values), 0).sum(axis=0)


def merged(
    one: Attributed, spans: Sequence[tuple[int, int]], aggregates: dict[str, str], number: int = 0
) -> Attributed:
    """Return an input whose spans of tokens are merged; see ``Attribution.aggregate``.

    Args:
        one: the input.
        spans: ranges of tokens, (first, one past the last).
        aggregates: how each of ``step_scores`` is combined when steps are merged.
        number: index of the input, for messages.

    Raises:
        InputError: for spans that overlap or do not fit.
    """
    return _merged(one, _ranges(one, spans, number), None, aggregates)


def whole_answer(one: Attributed, aggregates: dict[str, str]) -> Attributed:
    """Return an input whose steps are merged into one, which stands for the whole answer.

    Errors of completeness, the detail ``delta``, add up as the scores do; other diagnostics are left out.
    """
    deltas = {name: values.sum(keepdims=True) for name, values in one.details.items() if name == "delta"}
    return replace(merged(one, [(one.start, one.stop)], aggregates), details=deltas)


def _ranges(one: Attributed, spans: Sequence[tuple[int, int]], number: int) -> Ranges:
    """Return ranges that cover all tokens: the spans, and single tokens between them."""
    if any(isinstance(span, int) for span in spans):
        raise InputError(
            f"spans[{number}] is {spans}; give a list of ranges for each input, such as [[(0, 2)]] for one"
        )
    found: Ranges = []
    at = 0
    for start, end in sorted(spans):
        if not at <= start < end <= len(one.tokens):
            raise InputError(
                f"spans[{number}]: ({start}, {end}) overlaps another or is not inside the {len(one.tokens)} tokens"
            )
        if any(start < edge < end for edge in (one.n_prompt, one.start, one.stop)):
            raise InputError(
                f"spans[{number}]: ({start}, {end}) crosses the end of the prompt or of the attributed steps"
            )
        found += [(token, token + 1) for token in range(at, start)]
        found.append((start, end))
        at = end
    return found + [(token, token + 1) for token in range(at, len(one.tokens))]


def _with_words(one: Attributed, aggregates: dict[str, str]) -> Attributed:
    edges = (one.n_prompt, one.start, one.stop)
    source = None if one.source_words is None else _words(one.source_words, ())
    return _merged(one, _words(one.words, edges), source, aggregates)


def _words(words: Sequence[int], edges: Sequence[int]) -> Ranges:
    """Return the range of tokens of each word; a word that crosses an edge is split there."""
    starts = [at for at, word in enumerate(words) if at == 0 or at in edges or word != words[at - 1]]
    return list(zip(starts, [*starts[1:], len(words)], strict=True))


def _merged(one: Attributed, rows: Ranges, source: Ranges | None, aggregates: dict[str, str]) -> Attributed:
    """Merge ranges of tokens, and the steps among them; scores are summed."""
    columns = [(start - one.start, end - one.start) for start, end in rows if one.start <= start < one.stop]
    first_row = next(row for row, (start, _) in enumerate(rows) if start == one.start)

    def change(values: ScoreArray, side: str) -> ScoreArray:
        ranges = rows if side == "target" else source
        whole = values
        if side == "target":
            # Tokens at and after a step's own token count as 0; those of a merged step get NaN again below.
            unscored = one.unscored() if values.ndim == 2 else one.unscored()[..., None]
            whole = np.where(unscored, 0, values)
        whole = whole if ranges is None else _added(whole, ranges, axis=0)
        whole = _added(whole, columns, axis=1)
        if side == "target":
            for step in range(len(columns)):
                whole[first_row + step :, step] = np.nan
        return whole

    return replace(
        _mapped(one, change),
        tokens=tuple(_joined(one.tokens, rows)),
        token_ids=tuple(_joined_ids(one.token_ids, rows)),
        words=tuple(_first_words(one.words, rows)),
        n_prompt=sum(start < one.n_prompt for start, _ in rows),
        start=first_row,
        stop=first_row + len(columns),
        step_scores={
            name: np.array([MERGES[aggregates[name]](values[start:end]) for start, end in columns])
            for name, values in one.step_scores.items()
        },
        details=one.details if len(columns) == one.stop - one.start else {},
        foil_tokens=one.foil_tokens and tuple(_joined(one.foil_tokens, columns)),
        source_tokens=one.source_tokens and tuple(_joined(one.source_tokens, source)),
        source_ids=one.source_ids and tuple(_joined_ids(one.source_ids, source)),
        source_words=one.source_words and tuple(_first_words(one.source_words, source)),
    )


def _joined(tokens: Sequence[str], ranges: Ranges | None) -> Sequence[str]:
    return tokens if ranges is None else [join_pieces(tokens[start:end]) for start, end in ranges]


def _first_words(words: Sequence[int], ranges: Ranges | None) -> Sequence[int]:
    return words if ranges is None else [words[start] for start, _ in ranges]


def _joined_ids(ids: Sequence[int], ranges: Ranges | None) -> Sequence[int]:
    return ids if ranges is None else [ids[start] if end == start + 1 else -1 for start, end in ranges]


def _added(values: ScoreArray, ranges: Ranges, axis: int) -> ScoreArray:
    return np.add.reduceat(values, [start for start, _ in ranges], axis=axis)


def to_frame(attribution: AttributionScores) -> pd.DataFrame:
    """Return a table in long format; see ``Attribution.to_frame``."""
    how = reduction_of(attribution.info.method)
    rows = [row for number, one in enumerate(attribution.sequences) for row in _rows(number, _reduced(one, how))]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(number: int, one: Attributed) -> Iterator[tuple[object, ...]]:
    for (side, name), values in one.parts().items():
        tokens = one.tokens if side == "target" else one.source_tokens or ()
        for step, column in enumerate(range(one.start, one.stop)):
            seen = values[:, step] if side == "source" else values[:column, step]
            for position, score in enumerate(seen.tolist()):
                yield number, side, name, step, column, one.tokens[column], position, tokens[position], score
