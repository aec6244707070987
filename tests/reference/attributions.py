"""Handmade attributions, and an assertion that two attributions are identical."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

import numpy as np

from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed, AttributionInfo

TOKENS = ("The", " Tower", " is", " in", " the", " the", " city")


def staircase(n_tokens: int, start: int, stop: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Random scores, [T, G]; NaN at the generated token of each step and at later tokens."""
    scores = np.random.default_rng(seed).normal(size=(n_tokens, stop - start)).astype(dtype)
    scores[np.arange(n_tokens)[:, None] >= np.arange(start, stop)] = np.nan
    return scores


def word_numbers(tokens: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the words of handmade tokens: a word begins with a space."""
    return tuple(accumulate(int(index > 0 and token.startswith(" ")) for index, token in enumerate(tokens)))


def made_one(tokens: tuple[str, ...] = TOKENS, n_prompt: int = 5, **values: Any) -> Attributed:
    """One input of which all tokens after the prompt are attributed."""
    start, stop = values.pop("start", n_prompt), len(tokens)
    defaults: dict[str, Any] = {
        "tokens": tokens,
        "token_ids": tuple(range(10, 10 + len(tokens))),
        "words": word_numbers(tokens),
        "n_prompt": n_prompt,
        "start": start,
        "stop": stop,
        "scores": staircase(len(tokens), start, stop),
        "step_scores": {"probability": np.linspace(0.25, 0.5, stop - start)},
    }
    return Attributed(**(defaults | values))


def made_info(**values: Any) -> AttributionInfo:
    defaults: dict[str, Any] = {
        "method": "occlusion",
        "attributed_fn": "probability",
        "unit": "1",
        "contrast": None,
        "step_units": {"probability": "1"},
        "step_aggregates": {"probability": "product"},
        "model": "toy",
        "tokenizer": "toy",
    }
    return AttributionInfo(**(defaults | values))


def made(*sequences: Attributed, **info: Any) -> Attribution:
    return Attribution(list(sequences) or [made_one()], made_info(**info))


def assert_same(one: Any, other: Any) -> None:
    """Assert that two values are bit-identical, with equal types and shapes; NaN equals NaN."""
    assert type(one) is type(other), (one, other)
    if isinstance(one, Attribution | Attributed | AttributionInfo):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)
        assert np.array_equal(np.signbit(one[~np.isnan(one)]), np.signbit(other[~np.isnan(other)]))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == other
