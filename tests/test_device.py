"""Batches that do not fit in memory are halved, and a row that does not fit alone is an error, or is left out."""

import pytest
import torch

from interpret.device import in_batches, is_out_of_memory
from interpret.errors import ModelError
from reference.damage import OUT_OF_MEMORY


def work_of(too_large, refused, most):
    """Return work that fails for the rows ``refused``, and for more than ``most`` rows; and the batches it gets."""
    batches = []

    def work(rows):
        batches.append(list(rows))
        if len(rows) > most or refused & set(rows):
            too_large()
        return [row * 10 for row in rows]

    return work, batches


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
def test_a_row_that_does_not_fit_alone_is_left_out_and_later_batches_are_whole_again(too_large):
    work, batches = work_of(too_large, {2}, most=4)
    found = list(in_batches(range(9), 4, work, lambda line: None, lambda row: f"not {row}"))
    assert found == [0, 10, "not 2", *range(30, 90, 10)]
    assert batches == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3, 4, 5, 6], [7, 8]]


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_for_good(too_large):
    said = []
    work, batches = work_of(too_large, set(), most=3)
    assert list(in_batches(range(8), 6, work, said.append)) == list(range(0, 80, 10))
    assert [len(batch) for batch in batches] == [6, 3, 3, 2]
    assert said == ["a batch did not fit in memory; continuing with batches of 3"]


def test_a_row_that_does_not_fit_alone_is_an_error_without_a_place_for_it():
    work, _ = work_of(OUT_OF_MEMORY[0], {1}, most=4)
    with pytest.raises(ModelError, match="^not even a single text fits in memory"):
        list(in_batches(range(3), 2, work, lambda line: None))


def test_another_error_is_not_taken_for_memory():
    def work(rows):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        list(in_batches(range(3), 2, work, lambda line: None, lambda row: None))


def test_an_allocation_that_torch_refuses_is_out_of_memory():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
