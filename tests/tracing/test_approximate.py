from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from interpret.errors import InputError, UnsupportedModelError
from interpret.models.quantize import quantize_
from interpret.stats import rank_correlation
from interpret.sweep import Cell, Knockout, Metric, Pin, estimates, first_order, run_sweep
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.mediators import MEDIATORS
from reference.estimates import (
    ALL,
    MODELS,
    approximated,
    assert_same_scores,
    screened,
    traced,
)
from reference.kinds import EXPERTS, FURTHER, KINDS, L
from reference.tiny import hooks_on, tiny_model, wide_model
from reference.tracing import recorded, run

LOGIT = Metric("logit", (5,))


# ------------------------------------------------------------------------------------ estimates against exact runs


@pytest.fixture
def double():
    """Finite differences need float64; some models create their masks in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def cells_of(mediator, n_tokens, window):
    return MEDIATORS[mediator].cells(n_tokens, L, window)


def slope_of_runs(model, base, donor, cell, answer_ids):
    """Return the slope of the answer's probability when a fraction of the cell's difference is restored, [steps, S].

    Computed by forward passes with plain hooks: four fractions around 0, central differences with Richardson
    extrapolation, for each step of ``steps_for``.
    """
    pins = [pin.site for pin in cell.pins]
    good, bad = recorded(model, donor, [cell.site]), recorded(model, base, [cell.site, *pins])

    def write(values):
        def edit(value):
            value = value.clone()
            value[:, cell.token] = values[:, cell.token]
            return value

        return edit

    def probability(share):
        edits = {(layer, pin): write(bad[layer, pin]) for pin in pins for layer in range(cell.stop, L)}
        for layer in range(cell.start, cell.stop):
            mixed = bad[layer, cell.site] + share * (good[layer, cell.site] - bad[layer, cell.site])
            edits[layer, cell.site] = write(mixed)
        logs = run(model, base, edits)[:, -len(answer_ids) :].double().log_softmax(-1)
        return sum(logs[:, step, token] for step, token in enumerate(answer_ids)).exp()

    def slope(h):
        near, far = (probability(h) - probability(-h), probability(2 * h) - probability(-2 * h))
        return (8 * near - far) / (12 * h)

    return torch.stack([slope(h) for h in steps_for(model.config.model_type)])


def steps_for(kind):
    """Return the steps of which one has to give the slope.

    A large step, because attention is in float32. Activations may have kinks within it, also in their slope, and other
    experts may be chosen: then a smaller one is right, if float32 does not spoil it.
    """
    kinks = kind in ("opt", "arcee", "jais2", "nemotron", *EXPERTS)
    return (0.02, 5e-3, 1e-3, 1e-4) if kinks else (0.02,)


@pytest.mark.matrix
@pytest.mark.parametrize("mediator", ALL)
@pytest.mark.parametrize("kind", [*KINDS, *FURTHER])
def test_an_estimate_is_the_slope_of_its_runs(double, kind, mediator):
    model = wide_model(kind).double()
    if kind in EXPERTS:
        model.set_experts_implementation("eager")  # torch's grouped products do not compute in float64
    check_slopes(model, mediator)


@pytest.mark.parametrize("mediator", ALL)
def test_a_sliding_window_of_attention_is_respected(double, mediator):
    model = wide_model("mistral").double()
    model.config.sliding_window = 2
    check_slopes(model, mediator)


@pytest.mark.parametrize("mediator", ALL)
def test_the_estimate_of_a_whole_answer_is_the_slope_of_the_product(double, mediator):
    model = wide_model("gpt2").double()
    found = check_slopes(model, mediator, answer_tokens="whole", answer="Tokyo")
    assert len(found.answer_ids) > 1


@cache
def subject_span():
    return approximated(mediators=["hidden"])["hidden"].subject_span


def check_slopes(model, mediator, answer_tokens="first", answer=None):
    first, stop = subject_span()
    width = model.get_input_embeddings().weight.shape[1]
    noise = 0.3 * np.random.default_rng(4).normal(size=(2, stop - first, width))
    settings = TraceSettings(noise, window=3, answer_tokens=answer_tokens)
    found = approximated(model, settings, mediators=[mediator], answer=answer)[mediator]
    clean = model.get_input_embeddings()(torch.tensor([[*found.token_ids, *found.answer_ids[:-1]]])).detach()
    base = clean.repeat(2, 1, 1)
    base[:, first:stop] += torch.from_numpy(noise)
    effects = (found.sample_scores - found.sample_lows[:, None, None]).reshape(2, -1)
    cells, scale = cells_of(mediator, len(found.tokens), 3), np.abs(effects).max()
    largest = np.argsort(-np.abs(effects[0]))[:4]
    for index in [*largest, *np.random.default_rng(0).choice(len(cells), 4, replace=False)]:
        expected = slope_of_runs(model, base, clean, cells[index], found.answer_ids)
        apart = np.abs(effects[:, index] - expected.numpy()).min(axis=0)
        # A random model may be so near to the choice of other experts that no step avoids it.
        tolerance = 5e-3 if model.config.model_type in EXPERTS else 1e-3
        assert (apart <= tolerance * scale).all(), (
            f"{effects[:, index]} is estimated, the slopes are {expected.tolist()}"
        )
    return found


class Same(nn.Module):
    """An identity in place of a norm or an activation."""

    def forward(self, x):
        return x.contiguous()


def linear_gpt2():
    """No norms, no activation function, uniform attention: the logits are linear in every state."""
    model = tiny_model("gpt2")
    model.transformer.ln_f = Same()
    for block in model.transformer.h:
        block.ln_1 = block.ln_2 = block.mlp.act = Same()
        queries_and_keys = slice(0, 2 * model.config.n_embd)
        block.attn.c_attn.weight.data[:, queries_and_keys] = 0
        block.attn.c_attn.bias.data[queries_and_keys] = 0
    return model


@pytest.mark.parametrize("mediator", ALL)
def test_the_estimates_of_a_linear_model_are_exact(mediator):
    model = linear_gpt2()
    base, donor = torch.tensor([[3, 9, 4, 8, 6], [3, 7, 7, 8, 6]]), torch.tensor([[3, 2, 5, 8, 6]])
    cells = cells_of(mediator, 5, 3)
    found, exact = first_order(model, base, donor, cells, LOGIT), run_sweep(model, base, donor, cells, {"m": LOGIT})
    effects = exact.values["m"] - exact.base["m"]
    assert effects.abs().max() > 1
    torch.testing.assert_close(found.effects, effects, rtol=1e-4, atol=1e-4 * float(effects.abs().max()))


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_runs_are_those_of_the_exact_trace(kind):
    found, exact = approximated(MODELS[kind]), traced(MODELS[kind])
    assert list(found) == ALL
    for name, result in exact.items():
        assert found[name].high == pytest.approx(result.high, rel=1e-6)
        np.testing.assert_allclose(found[name].sample_lows, result.sample_lows, rtol=1e-6)
        same = ("answer_ids", "answer", "subject_span", "tokens", "token_ids", "mediator")
        assert [getattr(found[name], part) for part in same] == [getattr(result, part) for part in same]
        assert (found[name].method, result.method) == ("approximate", "exact")
        assert found[name].scores.shape == found[name].exact.shape == result.exact.shape


def test_relevance_takes_the_place_of_gradients():
    """``tests/engine/test_relevance.py`` compares the estimates of single cells with autograd."""
    found, gradients = approximated(method="relp"), approximated()
    for name, result in found.items():
        assert result.method == "relp"
        assert (result.low, result.high) == pytest.approx((gradients[name].low, gradients[name].high), rel=1e-6)
        assert not np.allclose(result.scores, gradients[name].scores, rtol=1e-2)


@pytest.mark.parametrize("method", ["approximate", "relp"])
def test_each_mediator_has_estimates_of_its_own(method):
    effects = [result.indirect_effects for result in approximated(method=method).values()]
    scale = max(np.abs(effect).max() for effect in effects)
    for i in range(len(effects)):
        assert not any(np.allclose(effects[i], effects[j], rtol=0, atol=1e-3 * scale) for j in range(i))


def test_cells_that_cannot_have_an_effect_are_estimated_as_exactly_zero():
    for name, result in approximated().items():
        assert not result.indirect_effects[: result.subject_span[0]].any()
        if name not in ("attn_window", "mlp_window"):
            assert not result.indirect_effects[:-1, L - 1].any()


def test_tokens_before_the_first_difference_have_no_effect_by_rounding(monkeypatch):
    monkeypatch.setattr(estimates, "_along", lambda there, here, slope, units: torch.ones(*slope.shape[:2], 1).double())
    ids = torch.tensor([[3, 9, 4, 8], [3, 7, 4, 8]])
    cells = [Cell("resid_post", token, 1, 2) for token in range(4)]
    found = first_order(MODELS["llama"], ids, torch.tensor([[3, 2, 4, 8]]), cells, LOGIT)
    assert found.effects.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]


def test_a_counterfactual_prompt_takes_the_place_of_noise():
    found = approximated(counterfactual="The Eiffel Tower of in")
    exact = traced(MODELS["llama"], counterfactual="The Eiffel Tower of in")
    assert found["hidden"].low == pytest.approx(exact["hidden"].low, rel=1e-6)
    assert found["hidden"].indirect_effects.any()


# ---------------------------------------------------------------------------------- the model, memory and modes


@pytest.mark.parametrize("memory", [1, 200_000])
def test_samples_that_do_not_fit_in_memory_run_one_by_one(memory):
    few = TraceSettings(samples=5, window=3, memory=memory)
    assert_same_scores(approximated(settings=few), approximated(settings=TraceSettings(samples=5, window=3)))


def test_each_sample_may_have_a_donor_of_its_own():
    base, donor = torch.tensor([[3, 9, 4, 8], [3, 7, 4, 8]]), torch.tensor([[3, 2, 5, 8], [6, 2, 4, 8]])
    for memory in (None, 1):
        both = first_order(MODELS["llama"], base, donor, cells_of("hidden", 4, 1), LOGIT, memory=memory)
        for row in range(2):
            alone = slice(row, row + 1)
            one = first_order(MODELS["llama"], base[alone], donor[alone], both.cells, LOGIT)
            torch.testing.assert_close(both.effects[:, alone], one.effects, rtol=1e-3, atol=1e-5)
            # in float32, rounding depends on the batch
            torch.testing.assert_close(both.donor[alone], one.donor, rtol=1e-5, atol=1e-6)


def test_a_model_that_computes_differently_from_its_family_is_refused():
    model = wide_model("llama")
    model.model.layers[1].self_attn.register_forward_hook(lambda module, args, output: (output[0] + 1, *output[1:]))
    with pytest.raises(UnsupportedModelError, match=r"^LlamaForCausalLM does not compute what other llama models do"):
        approximated(model)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_the_callers_gradient_mode_does_not_matter(mode):
    with mode():
        found = approximated()
    assert_same_scores(found, approximated())


@pytest.mark.parametrize("call", [approximated, screened])
def test_weights_keep_their_flags_and_get_no_gradient(call):
    model = wide_model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    frozen = [index % 2 == 0 for index, _ in enumerate(model.parameters())]
    for parameter, flag in zip(model.parameters(), frozen, strict=True):
        parameter.requires_grad_(flag)
    call(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert hooks_on(model) == 0
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("calls", range(7))
def test_an_error_during_the_trace_leaves_the_model_unchanged(calls, monkeypatch):
    """The MLP of layer 2 fails after ``calls`` calls: in one of the runs, or in the backward pass."""
    model, left = wide_model("gpt2"), [calls]
    module = model.transformer.h[2].mlp.c_fc
    forward = module.forward

    def failing(x):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("in the middle")
        return forward(x)

    monkeypatch.setattr(module, "forward", failing)
    with pytest.raises(RuntimeError, match=r"^in the middle$"):
        approximated(model)
    assert hooks_on(model) == 0
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_gradient_checkpointing_stays_on_and_changes_nothing():
    model = wide_model("llama")
    model.gradient_checkpointing_enable()
    found = approximated(model)
    assert model.is_gradient_checkpointing
    assert_same_scores(found, approximated())


def test_half_precision_follows_the_model():
    found = approximated(wide_model("llama").bfloat16())
    for name, result in approximated().items():
        assert rank_correlation(found[name].indirect_effects, result.indirect_effects) > 0.8


def test_estimates_work_with_quantised_weights():
    found = approximated(quantize_(wide_model("llama"), 8))
    for name, result in approximated().items():
        assert rank_correlation(found[name].indirect_effects, result.indirect_effects) > 0.8


# ----------------------------------------------------------------------------------------------------- bad input


def test_an_approximation_refuses_what_a_trace_refuses():
    with pytest.raises(InputError, match=r"^unknown mediator 'hiden'; did you mean 'hidden'"):
        approximated(mediators=["hiden"])
    with pytest.raises(InputError, match=r"^samples is 0; give at least 1$"):
        approximated(settings=TraceSettings(samples=0))
    with pytest.raises(InputError, match=r"^the model is in training mode"):
        approximated(wide_model("llama").train())


@pytest.mark.parametrize(
    "cell",
    [
        Cell("heads", 1, 1, 3, 0),
        Cell("neurons", 1, 1, 2, 0, (Pin("attn_out"),)),
        Cell("attention", 1, 1, 2, knockout=Knockout((0,))),
        Cell("resid_post", 1, 0, 2),
        Cell("resid_post", 1, -1, 0),
        Cell("mlp_out", 1, 1, 2, pins=(Pin("attn_out"),)),
    ],
)
def test_cells_without_an_estimate_are_refused(cell):
    ids = torch.tensor([[3, 1, 4]])
    with pytest.raises(InputError, match=r"^cells\[1\]: this cell has no first-order estimate; supported are "):
        first_order(MODELS["llama"], ids, ids, [Cell("mlp_out", 1, 0, 2), cell], LOGIT)


def test_cells_outside_the_model_are_refused():
    ids = torch.tensor([[3, 1, 4]])
    with pytest.raises(InputError, match=r"^cells\[0\]: token 3 does not exist; this prompt has tokens 0 to 2$"):
        first_order(MODELS["llama"], ids, ids, [Cell("mlp_out", 3, 0, 2)], LOGIT)
