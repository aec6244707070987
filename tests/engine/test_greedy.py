"""Greedy continuations are those of whole passes over each text alone, without a KV cache and without padding."""

from collections.abc import Sequence

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from interpret.engine.greedy import write_after
from interpret.prompts.batches import pad
from reference.kinds import KINDS
from reference.tiny import LONGROPE_LIMIT, longrope_model, tiny_model

NEW = 6
ROWS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [17]]
HAS_LONGROPE = hasattr(transformers, "Phi3Config")


def plain(model: PreTrainedModel, ids: Sequence[int], new_tokens: int = NEW) -> list[int]:
    """Return the most likely tokens, each from a pass over all tokens before it."""
    text = list(ids)
    with torch.no_grad():
        for _ in range(new_tokens):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(ids) :]


def check(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    assert [one.ids for one in write_after(model, rows, NEW)] == [plain(model, row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_continues_each_prompt_as_if_it_were_alone(kind: str) -> None:
    model = tiny_model(kind)
    check(model, ROWS)
    firsts = [one.p_first for one in write_after(model, ROWS, NEW)]
    with torch.no_grad():
        alone = [model(torch.tensor([row])).logits[0, -1].softmax(-1).max().item() for row in ROWS]
    assert firsts == pytest.approx(alone, abs=1e-5)


def windowed_mistral(window: int = 4) -> PreTrainedModel:
    model = tiny_model("mistral")
    model.config.sliding_window = window
    return model


def test_texts_beyond_the_window_of_mistral_heed_it() -> None:
    check(windowed_mistral(), ROWS)


def test_cached_decoding_of_this_release_is_known() -> None:
    """transformers 4.34.0 ignores the window once it has a cache; this is why passes without a cache are made."""
    model, row = windowed_mistral(), ROWS[0]
    stock = model.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0, len(row) :]
    assert (stock.tolist() == plain(model, row)) == (transformers.__version__ != "4.34.0")


def longrope_rows(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 90, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.skipif(not HAS_LONGROPE, reason="this release has no longrope")
@pytest.mark.parametrize("family", ["Phi3", "Llama"])
def test_texts_on_both_sides_of_a_longrope_limit_are_continued_as_alone(family: str) -> None:
    model = longrope_model(family)
    rows = longrope_rows([5, 20, 12, 14, 14, 30, 16, 17])
    # One batch differs from the row alone, so that the test can fail.
    batch = pad(rows[:2], 0)
    with torch.no_grad():
        together, alone = model(**batch.model_inputs()).logits[0, -1], model(torch.tensor([rows[0]])).logits[0, -1]
    assert (together - alone).norm() > 0.05 * alone.norm()
    check(model, rows)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 2 * LONGROPE_LIMIT), min_size=1, max_size=4))
def test_prompts_of_any_lengths_are_continued_as_alone(lengths: list[int]) -> None:
    rows = longrope_rows(lengths)
    check(WINDOWED, rows)
    if HAS_LONGROPE:
        check(LONGROPE, rows)


WINDOWED = windowed_mistral()
if HAS_LONGROPE:
    LONGROPE = longrope_model()
