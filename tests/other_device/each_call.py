"""Every public call does on another device what it does on the CPU; run by test_every_call.py."""

import inspect
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import interpret
import interpret.device
from other_device import device
from other_device.calls import CALLS, model_of
from other_device.comparing import assert_alike, results, spread
from other_device.device import ELSEWHERE, elsewhere

# They are part of other calls here, or read no tensor.
WITHIN_OTHERS = {
    "applied",
    "detach",
    "check_module_names",
    "model_circumstances",
    "model_identity",
    "plan_sources",
    "norm_figure",
    "read_answer",
    "load_tuned_lens",
    "tuned_lens",
    "expert_of",
    "neuron_of",
}


@pytest.fixture(scope="module", params=["llama", "llama spread", "gpt2 without float64"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[PreTrainedModel, PreTrainedModel]]:
    """One model twice: on the CPU, and not there alone."""
    kind, _, place = request.param.partition(" ")
    with elsewhere(), pytest.MonkeyPatch.context() as patch:
        if place == "without float64":
            patch.setattr(device, "without_float64", True)
            patch.setattr(interpret.device, "WITHOUT_FLOAT64", {"elsewhere"})
        there = model_of(kind)
        yield model_of(kind), spread(there, ELSEWHERE) if place == "spread" else there.to(ELSEWHERE)


def test_no_public_function_of_a_model_is_left_out():
    called = {name.split(" (")[0] for name in CALLS}
    packages = [getattr(interpret, name) for name in interpret.__all__ if hasattr(getattr(interpret, name), "__path__")]
    public = {name: getattr(package, name) for package in packages for name in package.__all__}
    functions = {name: found for name, found in public.items() if inspect.isfunction(found)}
    of_models = {name for name, found in functions.items() if "model" in inspect.signature(found).parameters}
    writing_runs = {name for name in of_models if name.split("_")[0] == "run"}  # what the others give, in a folder
    assert of_models - called - writing_runs == WITHIN_OTHERS


def test_the_device_keeps_its_tensors_apart():
    with elsewhere():
        there, here = torch.ones(3, device="elsewhere"), torch.ones(3)
        for meeting in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: there.index_put_([torch.tensor([0])], here[:1]),
            lambda: there.numpy(),
            lambda: np.asarray(there),
            lambda: torch.rand(3, device="elsewhere", generator=torch.Generator()),
        ):
            with pytest.raises((RuntimeError, TypeError), match="device"):
                meeting()
        assert (there * torch.tensor(2.0) + here.to(there))[here.long()].cpu().tolist() == [3.0] * 3


@pytest.mark.matrix
@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_the_same_elsewhere(name, pair):
    here, there = pair
    if "mc_dropout" in name and here.config.model_type == "llama":
        with elsewhere(), pytest.raises(interpret.InputError, match="^this model has no dropout"):
            CALLS[name](there)
        return
    expected = results(CALLS[name], here)
    with elsewhere():
        found = results(CALLS[name], there)
    assert_alike(name, found, expected)
