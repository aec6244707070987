"""Every public call does on a GPU what it does on the CPU, also for a model that is partly on each."""

import pytest
import torch
from transformers import PreTrainedModel

from interpret import InputError
from other_device.calls import CALLS, model_of
from other_device.comparing import assert_alike, results, spread
from reference.devices import needs_a_gpu

pytestmark = [pytest.mark.gpu, needs_a_gpu]
DRAWING = ("samples", "mc_dropout")
"""Calls that draw random numbers on the model's device: a GPU draws others than the CPU from the same seed."""


@pytest.fixture(scope="module", params=["llama", "llama spread", "gpt2"])
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """One model twice: on the CPU, and on the GPU in whole or in part."""
    kind, _, place = request.param.partition(" ")
    there, gpu = model_of(kind), torch.device("cuda")
    return model_of(kind), spread(there, gpu) if place == "spread" else there.to(gpu)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_the_same_on_a_gpu(name, pair):
    here, there = pair
    if "mc_dropout" in name and here.config.model_type == "llama":
        with pytest.raises(InputError, match="^this model has no dropout"):
            CALLS[name](there)
        return
    expected = there if any(word in name for word in DRAWING) else here
    assert_alike(name, results(CALLS[name], there), results(CALLS[name], expected))
