import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.prompts.batches import (
    ends_in_padding,
    left_padding_order,
    pad,
    position_ids,
    token_columns,
    token_counts,
)

rows_of_ids = st.lists(st.lists(st.integers(1, 96), min_size=1, max_size=7), min_size=1, max_size=4)
sides = st.sampled_from(["left", "right"])
# Padding may be anywhere, also between tokens; a row may even have no tokens.
masks = st.tuples(st.integers(1, 4), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 1), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@given(rows_of_ids, sides)
def test_token_p_of_a_row_is_in_the_column_of_the_map(rows, side):
    batch = pad(rows, pad_id=0, side=side)
    columns = token_columns(batch.attention_mask)
    for row, ids in enumerate(rows):
        assert [int(batch.input_ids[row, columns[row, p]]) for p in range(len(ids))] == ids


@given(rows_of_ids, sides)
def test_padding_stands_on_the_side_asked_for_and_nowhere_else(rows, side):
    batch = pad(rows, pad_id=0, side=side)
    width = max(map(len, rows))
    for row, ids in enumerate(rows):
        padding = [0] * (width - len(ids))
        assert batch.input_ids[row].tolist() == (padding + ids if side == "left" else ids + padding)
        ones = [1] * len(ids)
        assert batch.attention_mask[row].tolist() == (padding + ones if side == "left" else ones + padding)
    assert token_counts(batch.attention_mask) == [len(ids) for ids in rows]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64


@given(rows_of_ids, sides)
def test_a_pad_id_that_is_also_a_token_does_not_confuse_the_map(rows, side):
    batch = pad(rows, pad_id=rows[0][0], side=side)
    assert token_counts(batch.attention_mask) == [len(ids) for ids in rows]


@given(rows_of_ids, sides)
def test_position_ids_number_tokens_from_zero_whatever_the_padding(rows, side):
    inputs = pad(rows, pad_id=0, side=side).model_inputs()
    for row, ids in enumerate(rows):
        tokens = inputs["attention_mask"][row].bool()
        assert inputs["position_ids"][row, tokens].tolist() == list(range(len(ids)))
        assert inputs["position_ids"][row, ~tokens].eq(1).all()


@given(masks)
def test_columns_list_tokens_first_and_then_padding_each_in_order(mask):
    for row, columns in zip(mask, token_columns(torch.tensor(mask)).tolist(), strict=True):
        tokens = [column for column, value in enumerate(row) if value]
        padding = [column for column, value in enumerate(row) if not value]
        assert columns == tokens + padding


@given(masks)
def test_left_padding_order_moves_padding_left_and_keeps_the_order_of_tokens(mask):
    for row, order in zip(mask, left_padding_order(torch.tensor(mask)).tolist(), strict=True):
        tokens = [column for column, value in enumerate(row) if value]
        padding = [column for column, value in enumerate(row) if not value]
        assert order == padding + tokens


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.uint8])
def test_masks_of_any_dtype_mean_the_same(dtype):
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]]).to(dtype)
    assert token_columns(mask).tolist() == [[1, 2, 0], [0, 1, 2]]
    assert left_padding_order(mask).tolist() == [[0, 1, 2], [2, 0, 1]]
    assert position_ids(mask).tolist() == [[1, 0, 1], [0, 1, 1]]
    assert token_counts(mask) == [2, 2]


@pytest.mark.parametrize(
    ("mask", "expected"), [([[1, 1], [0, 1]], False), ([[1, 1], [1, 0]], True), ([[0, 1], [0, 1]], False)]
)
def test_ends_in_padding_looks_at_the_last_column(mask, expected):
    assert ends_in_padding(torch.tensor(mask)) is expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows of tokens to pad: give at least one"),
        ([[1], []], "row 1 has no tokens: every sample needs at least one"),
    ],
)
def test_nothing_to_pad_is_an_error(rows, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        pad(rows, pad_id=0)
