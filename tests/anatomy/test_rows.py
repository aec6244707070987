"""Which texts share a batch, and which batches are refused."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from interpret.anatomy import batches, check_keeps_rotation, check_length, check_same_rotation, longrope_limit
from interpret.errors import InputError
from interpret.probing.heads import attention_patterns
from interpret.prompts.batches import pad
from interpret.surgery.generation import forward_interpret, generate_interpret
from reference.tiny import LONGROPE_LIMIT, longrope_model, tiny_model

LLAMA = tiny_model("llama")
needs_longrope = pytest.mark.skipif(not hasattr(transformers, "Phi3Config"), reason="this release has no longrope")


@pytest.fixture(params=["Phi3", "Llama"])
def longrope(request: pytest.FixtureRequest) -> PreTrainedModel:
    return longrope_model(request.param)


@given(st.lists(st.integers(1, 40), max_size=9), st.integers(1, 5))
def test_texts_of_most_models_fill_every_batch(lengths: list[int], size: int) -> None:
    found = [lengths[some] for some in batches(LLAMA, lengths, size)]
    assert found == [lengths[start : start + size] for start in range(0, len(lengths), size)]


@needs_longrope
@given(st.lists(st.integers(1, 40), max_size=9), st.integers(1, 5), st.integers(0, 9))
def test_texts_with_other_rotary_embeddings_are_in_other_batches(lengths: list[int], size: int, new: int) -> None:
    found = list(batches(LONGROPE, lengths, size, new))
    assert [one for some in found for one in lengths[some]] == lengths
    for some in found:
        assert 1 <= len(lengths[some]) <= size
        # In every pass of the continuation, all texts are on the same side of the limit.
        for step in range(new + 1):
            assert len({length + step > LONGROPE_LIMIT for length in lengths[some]}) == 1
        check_same_rotation(LONGROPE, lengths[some], new)


LONGROPE = longrope_model() if hasattr(transformers, "Phi3Config") else None


@needs_longrope
def test_the_limit_is_read_from_any_configuration(longrope: PreTrainedModel) -> None:
    assert longrope_limit(longrope) == LONGROPE_LIMIT
    assert longrope_limit(LLAMA) is None
    with torch.no_grad():  # the states of a text's first tokens change beyond the limit, and only there
        ids = torch.arange(3, 3 + LONGROPE_LIMIT + 1)[None]
        at, before, beyond = (longrope(ids[:, :n]).logits[0, 5] for n in (LONGROPE_LIMIT, 9, LONGROPE_LIMIT + 1))
    torch.testing.assert_close(at, before, atol=1e-5, rtol=1e-5)
    assert (beyond - at).abs().max() > 1e-2


@needs_longrope
def test_batches_of_the_caller_that_mix_rotary_embeddings_are_refused(longrope: PreTrainedModel) -> None:
    batch = pad([[5] * 20, [6, 7]], 0)
    message = r"^the samples have 2 to 20 tokens, but .* \(longrope\) for texts of more than 16 tokens, .* one by one$"
    with pytest.raises(InputError, match=message):
        forward_interpret(longrope, batch.input_ids, attention_mask=batch.attention_mask, insert_info=[None, None])
    with pytest.raises(InputError, match=message):
        attention_patterns(longrope, batch.input_ids, batch.attention_mask)
    batch = pad([[5] * 14, [6, 7]], 0)
    with pytest.raises(InputError, match=r"^the samples have 2 to 14 tokens and 6 new tokens, but"):
        generate_interpret(
            longrope, batch.input_ids, attention_mask=batch.attention_mask, insert_info=[None, None], max_new_tokens=6
        )


@needs_longrope
def test_a_text_that_grows_beyond_the_limit_is_refused_by_its_name(longrope: PreTrainedModel) -> None:
    check_keeps_rotation(longrope, "the text", 10, 6)
    check_keeps_rotation(longrope, "the text", 17, 6)
    message = r"^the text has 10 tokens; with 7 new tokens it grows beyond 16, .*: ask for at most 6 new tokens$"
    with pytest.raises(InputError, match=message):
        check_keeps_rotation(longrope, "the text", 10, 7)


def test_lengths_are_checked_with_the_new_tokens() -> None:
    check_length(LLAMA, "it", 64)
    check_length(LLAMA, "it", 60, 4)
    with pytest.raises(InputError, match="^it has 65 tokens; this model reads at most 64$"):
        check_length(LLAMA, "it", 65)
    with pytest.raises(
        InputError, match="^it has 60 tokens; with 5 new tokens it exceeds the 64 that this model reads"
    ):
        check_length(LLAMA, "it", 60, 5)
