"""A text with more tokens than the model reads is refused by every public call that runs it, by the same message.

A model with a table of positions would fail with an index error; one with rotary embeddings would silently compute
numbers for which it was not trained.
"""

from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

import interpret
from interpret.errors import InputError
from interpret.sweep import Cell, Metric, run_sweep
from other_device.calls import CALLS, PROMPT, SUBJECT, TOKENIZER, model_of

ONLY_WEIGHTS = {"composition_scores", "head_weights", "relational_subspaces"}
RUN_BY_THE_CALLER = {
    "record", "ablated_heads", "merged_heads", "replaced_layers", "deleted_layers", "permuted_layers"
}  # fmt: skip
OTHER_MODELS = {"attribute (m2m100)", "attribute (marian)", "attribute (t5)"}
REFUSING = [
    name
    for name in CALLS
    if name.split(" (")[0] not in ONLY_WEIGHTS | RUN_BY_THE_CALLER | {"known"} and name not in OTHER_MODELS
]
LONGEST = 2


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def short(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model that reads two tokens."""
    model = model_of(request.param)
    model.config.max_position_embeddings = LONGEST
    return model


@pytest.mark.matrix
@pytest.mark.parametrize("name", REFUSING)
def test_every_call_refuses_a_text_that_is_too_long(name: str, short: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=r" (reads at most 2|exceeds the 2 that this model reads)$"):
        CALLS[name](short)


def test_facts_that_are_too_long_are_dropped_with_this_reason(short: PreTrainedModel) -> None:
    assert [one.reason for one in CALLS["known (words)"](short)] == ["too long"]


def test_sweeps_of_runs_that_are_too_long_are_refused(short: PreTrainedModel) -> None:
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(InputError, match="^the base run has 3 tokens; this model reads at most 2$"):
        run_sweep(short, ids, ids, [Cell("resid_post", 0, 0, 1)], {"p": Metric("probability", (7,))})


def test_an_answer_counts_but_for_its_last_token() -> None:
    model = model_of("llama")
    trace = partial(interpret.trace, model, TOKENIZER, PROMPT, SUBJECT, samples=1)
    model.config.max_position_embeddings = len(TOKENIZER(PROMPT).input_ids)
    trace("Paris")
    with pytest.raises(InputError, match=r"^the prompt with its answer has \d+ tokens; this model reads at most \d+$"):
        trace("Paris and London", answer_tokens="whole")
