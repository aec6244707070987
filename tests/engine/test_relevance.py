"""Layers with the rules of LRP, compared with autograd through stock models in which what is constant is detached."""

import pytest
import torch

from interpret.anatomy import text_config
from interpret.engine import relevance
from interpret.engine.recording import record_run
from interpret.engine.relevance import with_rules
from interpret.engine.trunk import trunk_of
from interpret.errors import UnsupportedModelError
from interpret.sweep import Cell, Metric, Pin, first_order
from reference.kinds import EXPERTS, FURTHER, KINDS, MORE_KINDS
from reference.relevance import relevance_effect
from reference.sweeps import runs
from reference.tiny import tiny_model

CELLS = [
    Cell("resid_post", 1, 0, 1),
    Cell("resid_post", 2, 1, 2),
    Cell("resid_post", 5, 2, 3),
    Cell("resid_post", 2, 0, 1, pins=(Pin("attn_out"),)),
    Cell("resid_post", 2, 0, 1, pins=(Pin("mlp_out"),)),
    Cell("attn_out", 2, 0, 1),
    Cell("attn_out", 3, 1, 4),
    Cell("mlp_out", 2, 0, 1),
    Cell("mlp_out", 5, 0, 3),
]
UNITS = [Cell("heads", 2, 1, 2, 3), Cell("heads", 5, 2, 3, 0), Cell("neurons", 2, 1, 2, 7), Cell("neurons", 1, 0, 1, 0)]
ANSWER = (5,)


@pytest.fixture
def double():
    """Comparison to 1e-5 needs float64; some models create their masks in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_relevance(model, cells, answer=ANSWER):
    base, donor = (run.double() for run in runs(model))
    found = first_order(model, base, donor, cells, Metric("logit", answer), method="relp").effects
    expected = torch.stack([relevance_effect(model, base, donor, cell, answer) for cell in cells])
    assert expected.abs().max(dim=1).values.min() > 1e-6  # every cell has an effect
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", [*KINDS, *(one for one in FURTHER if one.values[0] not in EXPERTS)])
def test_estimates_are_those_of_autograd_with_what_is_constant_detached(double, kind):
    assert_relevance(tiny_model(kind).double(), CELLS)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_single_heads_and_neurons_are_estimated_alike(double, kind):
    assert_relevance(tiny_model(kind).double(), UNITS)


def test_all_tokens_of_an_answer_are_read(double):
    assert_relevance(tiny_model("llama").double(), CELLS, (5, 9))


@pytest.mark.parametrize("kind", ["gptj", "falcon"])
def test_where_the_models_own_values_do_not_differ_there_is_no_relevance(kind):
    """An MLP beside the attention does not depend on earlier tokens; in half precision the rules round otherwise."""
    model = tiny_model(kind).bfloat16()
    base, donor = (run.bfloat16() for run in runs(model, n_samples=1))
    cells = [Cell("mlp_out", token, 0, 1) for token in range(3, 6)]  # after the noise
    found = first_order(model, base, donor, cells, Metric("logit", ANSWER), method="relp")
    assert found.effects.eq(0).all()


def test_relevance_is_not_the_gradient():
    base, donor = runs(tiny_model("llama"))
    by_method = [
        first_order(tiny_model("llama"), base, donor, CELLS, Metric("logit", ANSWER), method=method).effects
        for method in ("approximate", "relp")
    ]
    assert (by_method[0] - by_method[1]).abs().max() > 0.1 * by_method[0].abs().max()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_relevance_is_conserved_without_biases(double, kind):
    """Everything is a product of the input and constants: the logit is the derivative times the last layer's state."""
    model = tiny_model(kind).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    trunk = trunk_of(model, 4)
    start = trunk.enter(model.get_input_embeddings()(torch.tensor([[3, 1, 4, 1]]))).detach()
    back = with_rules(trunk, start)
    states = start.requires_grad_()
    logit = back.logits(record_run(back.layers, states, ()).states[-1])[0, -1, 5]
    (slope,) = torch.autograd.grad(logit, states)
    torch.testing.assert_close((slope * states).sum(), logit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rules_change_no_output(dtype):
    model = tiny_model("gemma2" if "gemma2" in KINDS else "llama").to(dtype)
    trunk = trunk_of(model, 4)
    start = trunk.enter(model.get_input_embeddings()(torch.tensor([[3, 1, 4, 1]])))
    with torch.no_grad():
        with_rules(trunk, start)


@pytest.mark.parametrize("kind", [kind for kind in ("mixtral", "gpt_oss") if kind in MORE_KINDS])
def test_mixtures_of_experts_are_refused_by_name(kind):
    model = tiny_model(kind)
    base, donor = runs(model)
    family = text_config(model).model_type
    with pytest.raises(UnsupportedModelError, match=f"^RelP has no rules for the mixtures of experts of {family} mod"):
        first_order(model, base, donor, CELLS, Metric("logit", ANSWER), method="relp")


def test_an_activation_function_that_is_not_zero_at_zero_is_refused():
    model = tiny_model("gpt2")
    for block in model.transformer.h:
        block.mlp.act = torch.nn.Softplus()
    base, donor = runs(model)
    with pytest.raises(UnsupportedModelError, match=r"^the activation function Softplus.* is not 0 at 0"):
        first_order(model, base, donor, CELLS, Metric("logit", ANSWER), method="relp")


def test_a_norm_with_another_formula_is_refused(monkeypatch):
    monkeypatch.setattr(relevance, "centres", lambda norm: False)
    model = tiny_model("gpt2")
    base, donor = runs(model)
    with pytest.raises(UnsupportedModelError, match=r"^the rules of RelP do not give the outputs of layer 0 of"):
        first_order(model, base, donor, CELLS, Metric("logit", ANSWER), method="relp")
