"""Surgery on a padded batch: each sample gives what it gives alone, with padding on either side, mask given or not."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MaxLengthCriteria, PreTrainedModel, StoppingCriteriaList

from interpret.errors import InputError, SpecError
from interpret.prompts.batches import Batch, pad, position_ids
from interpret.surgery.generation import forward_interpret, generate_interpret, greedy_search_interpret
from reference.kinds import KINDS, PAD, D, L
from reference.tiny import tiny_model

MODELS = {kind: tiny_model(kind) for kind in KINDS}
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20]]
VECTOR = torch.randn(1, 1, D, generator=torch.Generator().manual_seed(1))
NEW = 5

Rows = Sequence[Sequence[int]]


def edits(rows: Rows) -> list[dict[Any, Any] | None]:
    """Replace the first token's state at a layer in all samples but the last."""
    return [*({2: ([0], VECTOR)} for _ in rows[1:]), None]


def one_of(rows: Rows, row: int) -> list[dict[Any, Any] | None]:
    return [edits(rows)[row]]


def states(model: PreTrainedModel, ids: Tensor, info: list[dict[Any, Any] | None], **more: Any) -> Tensor:
    """Return the inputs of the layers, [L, B, T, D]."""
    with torch.no_grad():
        output = forward_interpret(model, ids, insert_info=info, output_hidden_states=True, **more)
    return torch.stack(output.hidden_states[:L])


def check_forward(model: PreTrainedModel, rows: Rows, batch: Batch, **more: Any) -> None:
    got = states(model, batch.input_ids, edits(rows), attention_mask=batch.attention_mask, **more)
    assert len(got) == L
    for number, row in enumerate(rows):
        alone = states(model, torch.tensor([row]), one_of(rows, number))
        own = got[:, number, batch.attention_mask[number].bool()]
        torch.testing.assert_close(own, alone[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_numbers_tokens_without_padding(kind: str, side: str) -> None:
    check_forward(MODELS[kind], ROWS, pad(ROWS, PAD, side=side))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(2, 90), min_size=1, max_size=9), min_size=1, max_size=4), st.data())
def test_padding_of_any_length_on_any_side_changes_nothing(rows: list[list[int]], data: st.DataObject) -> None:
    # Each row on a side of its own, or in the middle.
    width = max(map(len, rows))
    starts = [data.draw(st.integers(0, width - len(row))) for row in rows]
    mask = torch.tensor(
        [[int(start <= at < start + len(row)) for at in range(width)] for row, start in zip(rows, starts, strict=True)]
    )
    ids = torch.full_like(mask, PAD).masked_scatter(mask.bool(), torch.tensor([id for row in rows for id in row]))
    for kind in ("gpt2", "opt", "llama"):
        check_forward(MODELS[kind], rows, Batch(ids, mask))


def test_positions_that_are_given_are_kept() -> None:
    batch = pad(ROWS, PAD)
    model, mask = MODELS["gpt2"], batch.attention_mask
    shifted = position_ids(mask) + 3
    got = states(model, batch.input_ids, [None] * 3, attention_mask=mask, position_ids=shifted)
    with torch.no_grad():
        stock = model(batch.input_ids, attention_mask=mask, position_ids=shifted, output_hidden_states=True)
    assert torch.equal(got, torch.stack(stock.hidden_states[:L]))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_chunks_of_a_padded_batch_go_on_counting(kind: str) -> None:
    model, batch, first = MODELS[kind], pad(ROWS, PAD), 4
    info = edits(ROWS)
    with torch.no_grad():
        whole = forward_interpret(model, batch.input_ids, attention_mask=batch.attention_mask, insert_info=info)
        begin = forward_interpret(
            model, batch.input_ids[:, :first], attention_mask=batch.attention_mask[:, :first], use_cache=True,
            insert_info=[None] * 3,
        )  # fmt: skip
        rest = forward_interpret(
            model, batch.input_ids[:, first:], attention_mask=batch.attention_mask,
            past_key_values=begin.past_key_values, insert_info=[None] * 3,
        )  # fmt: skip
        plain = forward_interpret(
            model, batch.input_ids, attention_mask=batch.attention_mask, insert_info=[None] * 3
        ).logits
    assert not torch.allclose(whole.logits, plain, atol=1e-2)
    torch.testing.assert_close(rest.logits[:, -1], plain[:, -1], atol=1e-5, rtol=1e-5)


def test_a_call_without_surgery_is_the_stock_call() -> None:
    batch = pad(ROWS, PAD)
    model, inputs = MODELS["gpt2"], {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        assert torch.equal(forward_interpret(model, **inputs).logits, model(**inputs).logits)


def test_a_mask_of_another_shape_is_refused_under_surgery() -> None:
    mask = torch.ones(1, 1, 3, 3)
    with pytest.raises(SpecError, match=r"attention_mask has the shape \[1, 1, 3, 3\]; surgery needs .* \[B, T\]"):
        forward_interpret(MODELS["llama"], torch.tensor([[3, 4, 5]]), attention_mask=mask, insert_info=[None])


def generated(model: PreTrainedModel, ids: Tensor, mask: Tensor | None, info: list[dict[Any, Any] | None]) -> Tensor:
    more = {} if mask is None else {"attention_mask": mask}
    return generate_interpret(
        model, ids, insert_info=info, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, **more
    )


def searched(model: PreTrainedModel, ids: Tensor, mask: Tensor | None, info: list[dict[Any, Any] | None]) -> Tensor:
    limit = StoppingCriteriaList([MaxLengthCriteria(ids.shape[1] + NEW)])
    more = {} if mask is None else {"attention_mask": mask}
    return greedy_search_interpret(model, ids, insert_info=info, stopping_criteria=limit, pad_token_id=PAD, **more)


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("decode", "masked"), [(generated, True), (generated, False), (searched, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_of_a_padded_prompt_is_that_of_the_prompt_alone(
    kind: str, decode: Callable[..., Tensor], masked: bool, side: str
) -> None:
    model, batch = MODELS[kind], pad(ROWS, PAD, side=side)
    got = decode(model, batch.input_ids, batch.attention_mask if masked else None, edits(ROWS))
    assert torch.equal(got[:, : batch.input_ids.shape[1]], batch.input_ids)
    for number, row in enumerate(ROWS):
        alone = decode(model, torch.tensor([row]), None, one_of(ROWS, number))
        assert got[number, -NEW:].tolist() == alone[0, -NEW:].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("surgery", [True, False])
def test_a_text_that_is_too_long_is_refused(kind: str, surgery: bool) -> None:
    model, ids = MODELS[kind], torch.full((2, 65), 5)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # this sample has 64 tokens
    info = [None, None] if surgery else None
    with pytest.raises(InputError, match="^sample 1 has 65 tokens; this model reads at most 64$"):
        forward_interpret(model, ids, attention_mask=mask, insert_info=info)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_new_tokens_that_do_not_fit_are_refused(kind: str) -> None:
    model, batch = MODELS[kind], pad(ROWS, PAD)
    with pytest.raises(InputError, match="^sample 0 has 7 tokens; with 58 new tokens it exceeds the 64 that this"):
        generate_interpret(
            model, batch.input_ids, attention_mask=batch.attention_mask, insert_info=[None] * 3, max_new_tokens=58
        )
    with pytest.raises(InputError, match="^sample 0 has 65 tokens; this model reads at most 64$"):
        greedy_search_interpret(model, torch.full((1, 65), 5), insert_info=[None])
