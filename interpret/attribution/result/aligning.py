"""Align the attributions of two prompts that differ in words, so that one can be subtracted from the other.

Words that both prompts have, in the same order, correspond token by token. The words between them are merged on both
sides: ``doctor → nurse``. Shapes: T tokens of a text, G attributed tokens, A aligned places of the prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import groupby

import numpy as np

from interpret.attribution.result.scores import Attributed, ScoreArray
from interpret.errors import InputError
from interpret.prompts.spelling import join_pieces

ARROW, NOTHING = " → ", "∅"
Range = tuple[int, int]


def aligned(one: Attributed, other: Attributed, number: int) -> tuple[Attributed, Attributed]:
    """Return two inputs with the same tokens: those of their prompts where they agree, merged ones where they differ.

    Args:
        one: an input whose scores have no embedding dimension.
        other: another one, whose prompt has other words and whose continuation is the same.
        number: index of the inputs, for messages.

    Raises:
        InputError: if they have sources, as of encoder-decoders, or other continuations or attributed tokens.
    """
    if one.source_tokens is not None or other.source_tokens is not None:
        raise InputError("align is for decoder-only models; these inputs have sources")
    after = [
        (each.token_ids[each.n_prompt :], each.start - each.n_prompt, each.stop - each.n_prompt)
        for each in (one, other)
    ]
    if after[0] != after[1]:
        raise InputError(
            f"minus has another continuation or other attributed tokens at input {number}: give both prompts the same "
            "targets"
        )
    pairs = list(_places(one, other))
    tokens = [_label(one.tokens[slice(*here)], other.tokens[slice(*there)]) for here, there in pairs]
    found = [_at_places(each, [pair[side] for pair in pairs], tokens) for side, each in enumerate((one, other))]
    return found[0], found[1]


def _places(one: Attributed, other: Attributed) -> Iterator[tuple[Range, Range]]:
    """Yield the ranges of tokens that correspond, in order; a range is empty for words that only one prompt has."""
    words, others = _words(one), _words(other)
    matcher = SequenceMatcher(None, _texts(one, words), _texts(other, others), autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if b - a == d - c:
            for here, there in zip(words[a:b], others[c:d], strict=True):
                yield from _tokens(here, there) if kind == "equal" else [(here, there)]
        else:
            yield _span(words, a, b), _span(others, c, d)


def _words(one: Attributed) -> list[Range]:
    """Return the range of tokens of each word of the prompt."""
    columns = range(one.n_prompt)
    groups = [list(of_word) for _, of_word in groupby(columns, key=lambda column: one.words[column])]
    return [(of_word[0], of_word[-1] + 1) for of_word in groups]


def _texts(one: Attributed, ranges: Sequence[Range]) -> list[str]:
    return [join_pieces(one.tokens[first:end]) for first, end in ranges]


def _tokens(here: Range, there: Range) -> Iterator[tuple[Range, Range]]:
    """Yield the tokens of equal words, or the whole words if they have different numbers of tokens."""
    if here[1] - here[0] != there[1] - there[0]:
        yield here, there
        return
    for column, other in zip(range(*here), range(*there), strict=True):
        yield (column, column + 1), (other, other + 1)


def _span(words: Sequence[Range], first: int, end: int) -> Range:
    """Return the tokens of some neighbouring words; an empty range for none."""
    return (words[first][0], words[end - 1][1]) if end > first else (0, 0)


def _label(here: Sequence[str], there: Sequence[str]) -> str:
    if here == there:
        return join_pieces(here)
    texts = [join_pieces(tokens).strip() or NOTHING for tokens in (here, there)]
    space = " " if join_pieces([*here, *there]).startswith(" ") else ""
    return space + ARROW.join(texts)


def _at_places(one: Attributed, places: Sequence[Range], tokens: Sequence[str]) -> Attributed:
    """Return an input whose prompt has one token per place, with the sum of its scores."""
    n_prompt, n_places = one.n_prompt, len(places)

    def moved(values: ScoreArray) -> ScoreArray:
        of_prompt = np.stack([values[first:end].sum(0) for first, end in places])  # [A, G]
        return np.concatenate([of_prompt, values[n_prompt:]])

    ids = [one.token_ids[first] if end == first + 1 else -1 for first, end in places]
    return replace(
        one,
        tokens=(*tokens, *one.tokens[n_prompt:]),
        token_ids=(*ids, *one.token_ids[n_prompt:]),
        words=tuple(range(n_places + len(one.tokens) - n_prompt)),
        n_prompt=n_places,
        start=one.start - n_prompt + n_places,
        stop=one.stop - n_prompt + n_places,
        scores=None if one.scores is None else moved(one.scores),
        layer_scores={name: moved(values) for name, values in one.layer_scores.items()},
    )
