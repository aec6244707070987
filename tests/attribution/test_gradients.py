"""Gradient methods, compared with plain autograd, closed forms and Captum."""

import copy
import math
import warnings

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr._core import deep_lift
from torch import nn
from transformers.activations import GELUActivation, NewGELUActivation, SiLUActivation

from interpret import InputError, attribute
from interpret.anatomy import check_logits
from interpret.attribution.methods import gradients
from interpret.attribution.methods.gradients import _rescale
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.steps.step import Room
from reference.kinds import FURTHER, FURTHER_WHOLE
from reference.plain_attribution import (
    KINDS,
    N_PROMPT,
    PROMPT,
    TARGET,
    TOKENIZER,
    embeddings_of,
    ids_of,
    prefixes,
    probability_of,
    wide_model,
)
from reference.tiny import hooks_on


def scores(kind, method="input_x_gradient", **options):
    (one,) = attribute(wide_model(kind), TOKENIZER, PROMPT, TARGET, method=method, **options).sequences
    return one.scores


def assert_near(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("kind", [*KINDS, *FURTHER, *FURTHER_WHOLE])
def test_gradients_are_those_of_plain_autograd(kind):
    model = wide_model(kind)
    saliency, product = scores(kind, "saliency"), scores(kind)
    rtol = 1e-4 if kind == "gemma" else 1e-5  # large logits
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        x = embeddings_of(model, ids).requires_grad_()
        (expected,) = torch.autograd.grad(probability_of(model, x, target).sum(), x)
        assert_near(saliency[: len(ids), step], expected[0].numpy(), rtol)
        assert_near(product[: len(ids), step], (x * expected)[0].detach().numpy(), rtol)


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "deeplift", "gradient_shap", "occlusion"])
def test_all_steps_are_read_off_one_pass_of_the_text(method, monkeypatch):
    model, passes = wide_model("llama"), []
    scores("llama", method)  # what is checked once per model is done
    forward = type(model.base_model).forward

    def counted(*args, **options):
        output = forward(*args, **options)
        passes.append(torch.is_grad_enabled())
        return output

    monkeypatch.setattr(type(model.base_model), "forward", counted)
    scores("llama", method)
    # Step scores, and what the model's layers, run part by part, are compared with; there is no graph.
    assert passes == [False, False]


@pytest.mark.parametrize(
    "method", ["saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "deeplift"]
)
def test_a_graph_of_the_text_serves_all_steps_of_a_model_that_only_autograd_can_differentiate(method):
    model, passes = copy.deepcopy(wide_model("llama")), []
    expected = scores("llama", method)
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output)
    model.base_model.register_forward_hook(lambda *event: passes.append(torch.is_grad_enabled()))
    check_logits(model)  # made once per model
    passes.clear()
    (found,) = attribute(model, TOKENIZER, PROMPT, TARGET, method=method, batch_size=50).sequences
    # Step scores, the graph, and the values that the detail ``delta`` compares.
    assert passes == [False, True] + [False] * (method == "integrated_gradients")
    assert_near(found.scores[: len(ids_of(TARGET)) - 1, 1], expected[: len(ids_of(TARGET)) - 1, 1])


class Mixing(nn.Module):
    """An activation function that does not act on each neuron alone."""

    def forward(self, x):
        return torch.tanh(x) * x.mean(-1, keepdim=True)


def test_a_model_whose_derivatives_are_not_taken_back_rightly_is_left_to_autograd():
    model = copy.deepcopy(wide_model("llama"))
    for layer in model.model.layers:
        layer.mlp.act_fn = Mixing()
    (found,) = attribute(model, TOKENIZER, PROMPT, TARGET, method="saliency").sequences
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        x = embeddings_of(model, ids).requires_grad_()
        (expected,) = torch.autograd.grad(probability_of(model, x, target).sum(), x)
        assert_near(found.scores[: len(ids), step], expected[0].numpy())


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.gradients and not method.layers])
def test_scores_exist_for_the_tokens_before_a_step_only(method):
    found = scores("llama", method)
    n_tokens = len(ids_of(TARGET))
    assert found.shape[:2] == (n_tokens, 2)
    for step in range(2):
        assert np.isnan(found[N_PROMPT + step :, step]).all()
        assert not np.isnan(found[: N_PROMPT + step, step]).any()


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("baseline", ["zero", "mean", "eos", 7])
def test_integrated_gradients_add_up_to_the_change_of_the_value(kind, baseline):
    options = {"method": "integrated_gradients", "n_steps": 300, "batch_size": 100, "baseline": baseline}
    model, found = wide_model(kind), scores(kind, **options)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        x = embeddings_of(model, ids)
        start = {
            "zero": torch.zeros_like(x),
            "mean": model.get_input_embeddings().weight.mean(0).expand_as(x),
            "eos": embeddings_of(model, [TOKENIZER.eos_token_id] * len(ids)),
            7: embeddings_of(model, [7] * len(ids)),
        }[baseline]
        with torch.no_grad():
            change = probability_of(model, x, target) - probability_of(model, start, target)
        # Llama's norm has a pole at the zero embedding, so 300 points are few.
        tolerance = 1e-2 if (kind, baseline) == ("llama", "zero") else 1e-3
        assert np.nansum(found[:, step]) == pytest.approx(change.item(), abs=tolerance)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_integrated_gradients_are_captums(kind, batch_size):
    model = wide_model(kind)
    found = scores(kind, "integrated_gradients", n_steps=7, baseline=7, batch_size=batch_size)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        x, start = embeddings_of(model, ids), embeddings_of(model, [7] * len(ids))
        captums = captum.attr.IntegratedGradients(lambda x, target=target: probability_of(model, x, target))
        expected = captums.attribute(x, start, n_steps=7, method="gausslegendre")
        assert_near(found[: len(ids), step], expected[0].detach().numpy())


def test_integrated_gradients_report_their_error():
    (one,) = attribute(
        wide_model("gpt2"), TOKENIZER, PROMPT, TARGET, method="integrated_gradients", n_steps=3
    ).sequences
    start = np.array([
        probability_of(wide_model("gpt2"), torch.zeros_like(embeddings_of(wide_model("gpt2"), ids)), target).item()
        for ids, target in prefixes(TARGET)
    ])  # fmt: skip
    missed = np.nansum(one.scores, axis=(0, 2)) - (one.step_scores["probability"] - start)
    np.testing.assert_allclose(one.details["delta"], missed, atol=1e-7)


def test_all_path_methods_are_the_same_on_a_line():
    """For a linear value the gradient is constant, so every method gives gradient times difference."""
    line = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))

    class Line:
        embeddings, ids, batch_size, room, details = torch.ones(1, 4, 8) * 2, (1, 2, 3, 4), 3, Room(), {}
        model, one_trunk = None, False

        def states(self, embeddings):
            return (embeddings * line).sum(-1, keepdim=True).cumsum(1)

        def head(self, states):
            return states

        def read(self, logits, embeddings):
            return logits[:, 0]

        def baseline(self, choice):
            return torch.ones(1, 4, 8)

    for method in (gradients.integrated_gradients, gradients.gradient_shap):
        torch.testing.assert_close(method([Line()]), [line[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_shap_is_captums_at_the_same_draws(kind, monkeypatch):
    n, model = 6, wide_model(kind)
    shares = torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(np.random, "uniform", lambda *_: shares.flatten().numpy())
    found = scores(kind, "gradient_shap", n_samples=n, seed=4, baseline="mean", batch_size=n)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        x = embeddings_of(model, ids)
        start = model.get_input_embeddings().weight.detach().mean(0).expand_as(x)
        captums = captum.attr.GradientShap(lambda x, target=target: probability_of(model, x, target))
        expected = captums.attribute(x, start, n_samples=n, stdevs=0.0)
        assert_near(found[: len(ids), step], expected[0].detach().numpy())


def test_gradient_shap_puts_noise_of_the_given_size_on_each_sample():
    n, model, noise = 5, wide_model("llama"), 0.05
    found = scores("llama", "gradient_shap", n_samples=n, seed=4, noise=noise, baseline="mean")
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        x = embeddings_of(model, ids)
        start = model.get_input_embeddings().weight.detach().mean(0).expand_as(x)
        generator = torch.Generator().manual_seed(4)
        expected = torch.zeros_like(x)
        for share in torch.rand(n, generator=generator):
            way = x + noise * torch.randn(x.shape, generator=generator) - start
            point = (start + share * way).requires_grad_()
            expected += way * torch.autograd.grad(probability_of(model, point, target).sum(), point)[0] / n
        assert_near(found[: len(ids), step], expected[0].detach().numpy())


def test_gradient_shap_draws_by_its_seed_alone():
    state = torch.get_rng_state()
    first = scores("gpt2", "gradient_shap", noise=0.1, seed=1)
    torch.manual_seed(99)
    np.testing.assert_array_equal(first, scores("gpt2", "gradient_shap", noise=0.1, seed=1))
    assert np.nanmax(np.abs(first - scores("gpt2", "gradient_shap", noise=0.1, seed=2))) > 0
    torch.set_rng_state(state)


class Whole(nn.Module):
    """A model in the form Captum takes: embeddings -> probability of one token."""

    def __init__(self, model, target):
        super().__init__()
        self.model, self.target = model, target

    def forward(self, embeddings):
        return probability_of(self.model, embeddings, self.target)


@pytest.fixture
def _captum_knows_all_activations(monkeypatch):
    """Captum rescales only a few activation functions; its elementwise rule is used here for the others too."""
    for activation in (NewGELUActivation, SiLUActivation, GELUActivation):
        monkeypatch.setitem(deep_lift.SUPPORTED_NON_LINEAR, activation, deep_lift.nonlinear)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_captum_knows_all_activations")
def test_deeplift_is_captums(kind):
    found, model = scores(kind, "deeplift", baseline=7), wide_model(kind)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = captum.attr.DeepLift(Whole(model, target)).attribute(
                embeddings_of(model, ids), embeddings_of(model, [7] * len(ids))
            )
        assert_near(found[: len(ids), step], expected[0].detach().numpy())
        plain = scores(kind, "input_x_gradient")[: len(ids), step]
        assert np.abs(found[: len(ids), step] - plain).max() > 1e-3 * np.abs(plain).max()


def test_deeplift_of_a_text_against_itself_is_nothing_but_zeros():
    model = wide_model("llama")
    (one,) = attribute(model, TOKENIZER, "The", "The city", method="deeplift", baseline=ids_of("The")[0]).sequences
    assert (one.scores[: one.n_prompt, 0] == 0).all()


METHOD_OPTIONS = {
    "integrated_gradients": {"n_steps": 7},
    "layer_integrated_gradients": {"n_steps": 7},
    "gradient_shap": {"n_samples": 7, "noise": 0.1},
    "sequential_integrated_gradients": {"n_steps": 2},
}
CHEAP = {
    "sequential_integrated_gradients": {"n_steps": 2},
    "kernel_shap": {"n_samples": 60},
    "reagent": {"n_probes": 2, "max_rounds": 2},
}
"""Options of methods that take many passes."""


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.gradients])
def test_batches_change_nothing(method):
    prompts = ["The Eiffel Tower is in", "I love", "Anna's apples"]

    def found(batch_size):
        return attribute(
            wide_model("llama"), TOKENIZER, prompts, max_new_tokens=3, method=method, batch_size=batch_size,
            **METHOD_OPTIONS.get(method, {}), **({"layers": [1]} if method.startswith("layer") else {}),
        ).sequences  # fmt: skip

    for alone, together in zip(found(1), found(5), strict=True):
        assert alone.token_ids == together.token_ids
        for key, values in alone.parts().items():
            mask = ~np.isnan(values)
            assert_near(together.parts()[key][mask], values[mask], rtol=1e-4)


@pytest.mark.parametrize("method", list(METHODS))
def test_no_method_moves_the_model(method, monkeypatch):
    """A quantized model, or one on several devices, must not be moved."""

    def refuse(module, *args, **options):
        raise AssertionError(f"{type(module).__name__} is moved")

    model = wide_model("llama")
    for name in ("to", "cpu", "cuda", "float", "half"):
        monkeypatch.setattr(torch.nn.Module, name, refuse)
    attribute(model, TOKENIZER, PROMPT, TARGET, method=method, **CHEAP.get(method, {}))


@pytest.mark.parametrize("method", list(METHODS))
def test_nothing_is_left_on_the_model(method):
    model = wide_model("opt")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():  # as users call models; gradients are enabled where needed
        attribute(model, TOKENIZER, PROMPT, TARGET, method=method, **CHEAP.get(method, {}))
    assert not hooks_on(model)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "integrated_gradients", "n_steps": 0}, "n_steps is 0; give at least 1"),
        ({"method": "gradient_shap", "n_samples": 0}, "n_samples is 0; give at least 1"),
        ({"method": "gradient_shap", "noise": -1}, "noise is -1; a standard deviation must not be negative"),
        (
            {"method": "deeplift", "baseline": "zeros"},
            "unknown baseline 'zeros'; did you mean 'zero'? Allowed: zero, mean, pad, unk, bos, eos",
        ),
        (
            {"method": "deeplift", "baseline": "unk"},
            "baseline 'unk': this tokenizer has no such token; use 'zero', 'mean' or a token id",
        ),
        (
            {"method": "deeplift", "n_steps": 3},
            "method 'deeplift': unknown option 'n_steps'; Allowed: baseline",
        ),
        ({"n_steps": 3}, "method 'input_x_gradient': unknown option 'n_steps'; it takes no options"),
        ({"new_tokens": 3}, "unknown argument 'new_tokens'; did you mean 'max_new_tokens'?"),
        ({"contrast_target": TARGET}, "unknown argument 'contrast_target'; did you mean 'contrast_targets'?"),
        (
            {"method": "lime", "n_sample": 3},
            "method 'lime': unknown option 'n_sample'; did you mean 'n_samples'? "
            "Allowed: n_samples, mask_probability, kernel_width, penalty, baseline, seed",
        ),
    ],
)  # fmt: skip
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(InputError) as error:
        attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, **options)
    assert str(error.value) == message


@pytest.mark.parametrize(("gap", "dtype", "tolerance"), [(1.2e-7, torch.float32, 1e-4), (1e-4, torch.float64, 1e-9)])
def test_inputs_that_are_nearly_equal_have_the_derivative_others_the_slope(gap, dtype, tolerance):
    """SiLU between 0.5 and 0.5 + gap: the slope of a gap of one float32 rounding is noise (0.5 or 1)."""
    x, start = torch.tensor([[0.5 + gap], [0.5]], dtype=dtype).chunk(2)
    both = torch.cat([x, start]).requires_grad_()
    (found,) = torch.autograd.grad(_rescale(nn.SiLU(), (both,), nn.functional.silu(both))[0].sum(), both)
    sigmoid = 1 / (1 + math.exp(-0.5))
    derivative = sigmoid * (1 + 0.5 * (1 - sigmoid))
    other = 0.5 + gap
    slope = (other / (1 + math.exp(-other)) - 0.5 * sigmoid) / gap
    expected = derivative if dtype == torch.float32 else slope
    assert abs(slope - derivative) > (0 if dtype == torch.float32 else 1e-6)
    assert found[0].item() == pytest.approx(expected, abs=tolerance)
