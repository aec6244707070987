"""A model is compared with itself once, as it is without edits, and again when it has changed."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from interpret import record
from interpret.anatomy import FAMILIES, check_logits, check_parts, check_scores
from interpret.anatomy.families import using_family
from interpret.errors import UnsupportedModelError
from interpret.models.quantize import quantize_
from interpret.probing import ablated_heads
from reference.agreement import LOGITS, lens
from reference.tiny import wide_model
from reference.unlisted import adapt


def counted(model) -> list[int]:
    passes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *event: passes.append(1))
    return passes


def test_the_comparison_is_made_once_and_again_when_the_model_changes():
    model = wide_model("llama")
    passes = counted(model)
    for analysis in LOGITS:
        analysis(model)

    def compared() -> bool:
        before = len(passes)
        check_logits(model)
        check_parts(model)
        return len(passes) > before

    assert not compared()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert not compared(), "new weights in the same modules need no new comparison"
    old, model.model.norm = model.model.norm, copy.deepcopy(model.model.norm)
    assert compared()
    del old
    adapt(model, lambda name: name == "model.layers.0.mlp.up_proj")
    assert compared()
    model.config.logits_scaling = 3.0
    assert compared()
    with using_family(dataclasses.replace(FAMILIES["llama"], parts=None)):
        assert compared()
    handle = model.register_forward_hook(lambda module, args, output: None)
    assert compared()
    handle.remove()
    assert compared()
    assert not compared()


class RunsOutOfMemory(nn.Module):
    """A module inside which memory runs out, once, in the given call."""

    def __init__(self, inner: nn.Module, error: Exception, call: int) -> None:
        super().__init__()
        self.inner, self.error, self.calls_left = inner, error, call

    def forward(self, *args: object) -> object:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise self.error
        return self.inner(*args)


@pytest.mark.parametrize("call", [1, 2])  # in the recorded pass, and in the computation that is compared with it
@pytest.mark.parametrize("name", ["lm_head", "model.layers.1.input_layernorm", "model.layers.1.mlp.act_fn"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1234567890 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes."),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_no_property_of_the_model(error, name, call):
    model = wide_model("llama")
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, RunsOutOfMemory(model.get_submodule(name), error, call))
    with pytest.raises(type(error)) as caught:
        check_scores(model)
    assert caught.value is error
    check_logits(model)  # there is memory again
    check_scores(model)


def test_a_hook_that_changes_the_logits_is_noticed():
    model = wide_model("llama")
    lens(model)

    def doubled(module, args, output):
        output.logits = 2 * output.logits
        return output

    handle = model.register_forward_hook(doubled)
    with pytest.raises(UnsupportedModelError, match="unembedding its last state gives a logit"):
        lens(model)
    handle.remove()
    lens(model)


def test_the_comparison_does_not_see_edits_of_the_moment(llama):
    """Inside ``with`` blocks that edit states, the model is still compared as it is without them."""

    with ablated_heads(llama, [(1, 0)]):
        check_logits(llama)
        check_parts(llama)
        with record(llama, ["attn_out.1"]) as seen, torch.no_grad():
            llama(torch.tensor([[5, 6, 7]]))
        assert seen["attn_out.1"].shape == (1, 3, 32)


def test_quantised_and_half_precision_models_agree():
    model = wide_model("llama")
    quantize_(model, 8, device=torch.device("cpu"))
    check_logits(model)
    check_parts(model)
    half = wide_model("gpt2").to(torch.bfloat16)
    check_logits(half)
    check_parts(half)
