"""Layer methods, compared with one pass per layer, finite differences of overwritten layers, and Captum."""

import warnings
from contextlib import contextmanager

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr._core import deep_lift
from torch import nn
from transformers.activations import NewGELUActivation, SiLUActivation

from interpret import InputError, UnsupportedModelError, attribute
from interpret.anatomy import check_logits
from interpret.attribution import register_step_function
from interpret.attribution.methods.layer_gradients import layer_names
from interpret.attribution.steps.functions import FUNCTIONS
from reference.kinds import ATTENDING, MORE_KINDS, NO_MLP, L
from reference.plain_attribution import (
    FOIL,
    KINDS,
    N_PROMPT,
    PROMPT,
    TARGET,
    TOKENIZER,
    embeddings_of,
    prefixes,
    probability_of,
    wide_model,
)
from reference.tiny import hooks_on


def site_module(model, name):
    """The module of an activation, written by hand for each family."""
    site, layer = name.split(".")
    kind = model.config.model_type
    blocks = {
        "llama": lambda: model.model.layers,
        "opt": lambda: model.model.decoder.layers,
        "gpt_neox": lambda: model.gpt_neox.layers,
        "gpt2": lambda: model.transformer.h,
        "gptj": lambda: model.transformer.h,
        "mamba": lambda: model.backbone.layers,
        "jamba": lambda: model.model.layers,
    }[kind]()
    block = blocks[int(layer)]
    attention = {"llama": "self_attn", "opt": "self_attn", "gpt_neox": "attention", "gpt2": "attn", "gptj": "attn"}
    mlp = {"opt": "fc2", "jamba": "feed_forward"}
    attention |= {"jamba": "self_attn"}
    if site == "resid_post":
        return block
    if site == "mixer_out":
        return block.get_submodule({"mamba": "mixer", "jamba": "mamba"}[kind])
    return block.get_submodule(attention[kind] if site == "attn_out" else mlp.get(kind, "mlp"))


@contextmanager
def overwritten(module, change):
    """The plain reference: one hook that replaces the output of the module."""

    def hook(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        new = change(value)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


def activation_and_gradient(model, name, value):
    """One forward and one backward pass for one activation."""
    seen = []

    def keep(output):
        seen.append(output.detach().requires_grad_())
        return seen[0]

    with overwritten(site_module(model, name), keep):
        result = value()
    (found,) = torch.autograd.grad(result, seen[0])
    return seen[0].detach().reshape(-1, found.shape[-1]), found.reshape(-1, found.shape[-1])


def layer_scores(kind, method="layer_gradient_x_activation", **options):
    (one,) = attribute(wide_model(kind), TOKENIZER, PROMPT, TARGET, method=method, **options).sequences
    assert one.scores is None
    return one.layer_scores


def assert_near(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


SITES = ("resid_post", "attn_out", "mlp_out")
ALL = [f"{site}.{layer}" for layer in range(L) for site in SITES]
HYBRIDS = [kind for kind in ("mamba", "jamba") if kind in MORE_KINDS]


def activations_of(kind):
    """The names of all activations of a kind that layer methods attribute."""
    mlp = () if kind in NO_MLP else ("mlp_out",)
    mixing = ["attn_out" if layer in ATTENDING.get(kind, range(L)) else "mixer_out" for layer in range(L)]
    return [f"{site}.{layer}" for layer in range(L) for site in ("resid_post", mixing[layer], *mlp)]


@pytest.mark.parametrize("kind", HYBRIDS)
def test_an_activation_that_a_layer_does_not_have_is_refused_by_name(kind):
    with pytest.raises(UnsupportedModelError, match=r"^layer 0 of \w+Model has no attention: in its place is '\w+' \("):
        layer_names(wide_model(kind), "attn_out.0")
    found = layer_names(wide_model(kind), "mixer_out")
    assert found == [name for name in activations_of(kind) if name.startswith("mixer_out")]


@pytest.mark.parametrize("kind", [*KINDS, *HYBRIDS])
def test_every_activation_is_as_from_a_pass_of_its_own(kind):
    model, found = wide_model(kind), layer_scores(kind)
    assert list(found) == activations_of(kind)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        for name in found:
            x = embeddings_of(model, ids)
            value, gradient = activation_and_gradient(
                model, name, lambda x=x, target=target: probability_of(model, x, target).sum()
            )
            assert_near(found[name][: len(ids), step], (value * gradient).numpy())
            assert np.isnan(found[name][len(ids) :, step]).all()


def test_all_activations_of_a_text_take_one_forward_pass_and_one_backward_pass_a_step(monkeypatch):
    model, forward, backward = wide_model("llama"), [], []
    own_grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: backward.append(1) or own_grad(*args, **more))
    handle = model.base_model.register_forward_hook(lambda *event: forward.append(torch.is_grad_enabled()))
    check_logits(model)  # made once per model
    forward.clear()
    layer_scores("llama")
    handle.remove()
    assert forward == [False, True]  # the step scores, then the attribution
    assert len(backward) == 2


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_foil_in_the_same_context_is_read_from_the_texts_own_pass(kind):
    model = wide_model(kind)
    found = layer_scores(
        kind, attributed_fn="contrast_prob_diff", contrast="same_context", contrast_targets=FOIL, layers="mlp_out"
    )
    for step, ((ids, target), (_, foil)) in enumerate(zip(prefixes(TARGET), prefixes(FOIL), strict=True)):
        x = embeddings_of(model, ids)
        for name, scores in found.items():
            value, gradient = activation_and_gradient(
                model,
                name,
                lambda x=x, t=target, f=foil: (probability_of(model, x, t) - probability_of(model, x, f)).sum(),
            )
            assert_near(scores[: len(ids), step], (value * gradient).numpy())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_foils_own_pass_is_never_what_is_attributed(kind):
    """Inseq 0.4 attributed the foil's pass, because it kept the last output of each module."""
    contrast = {"attributed_fn": "contrast_prob_diff", "contrast_targets": FOIL}
    found = layer_scores(kind, contrast="own_prefix", **contrast)
    plain, same = layer_scores(kind), layer_scores(kind, contrast="same_context", **contrast)
    for name in ALL:
        # Before the texts differ, both have one context; after that, the foil's probability is a constant.
        assert_near(found[name][:N_PROMPT, 0], same[name][:N_PROMPT, 0])
        assert_near(found[name][: N_PROMPT + 1, 1], plain[name][: N_PROMPT + 1, 1])
        assert np.abs(same[name][:N_PROMPT, 0] - plain[name][:N_PROMPT, 0]).max() > 0


@pytest.mark.parametrize("kind", ["llama", "opt", "gptj"])
def test_layer_integrated_gradients_add_up_to_what_overwriting_the_activation_changes(kind):
    model = wide_model(kind)
    found = layer_scores(
        kind, "layer_integrated_gradients", baseline=7, n_steps=100, layers=["mlp_out.1", "attn_out.2"]
    )
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        for name, scores in found.items():
            x, start, seen = embeddings_of(model, ids), embeddings_of(model, [7] * len(ids)), []
            with torch.no_grad():
                with overwritten(site_module(model, name), lambda value, seen=seen: seen.append(value) or value):
                    probability_of(model, start, target)
                with overwritten(site_module(model, name), lambda value, seen=seen: seen[0]):
                    without = probability_of(model, x, target)
                change = probability_of(model, x, target) - without
            assert np.nansum(scores[:, step]) == pytest.approx(change.item(), abs=1e-5)


class Whole(nn.Module):
    def __init__(self, model, target):
        super().__init__()
        self.model, self.target = model, target

    def forward(self, embeddings):
        return probability_of(self.model, embeddings, self.target)


def captums(method, model, target, name):
    """Captum's method for an activation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = method(Whole(model, target), site_module(model, name))

    def attribute(x, start, **more):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = made.attribute(x, start, **more)
        return (found[0] if isinstance(found, tuple) else found)[0].detach().numpy()

    return attribute


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("name", ["mlp_out.1", "resid_post.2"])
def test_layer_integrated_gradients_are_captums(kind, name):
    model = wide_model(kind)
    found = layer_scores(kind, "layer_integrated_gradients", baseline=7, n_steps=20, layers=[name], batch_size=6)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        method = captums(captum.attr.LayerIntegratedGradients, model, target, name)
        expected = method(embeddings_of(model, ids), embeddings_of(model, [7] * len(ids)), n_steps=20)
        assert_near(found[name][: len(ids), step], expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_layer_deeplift_is_captums(kind, monkeypatch):
    for activation in (NewGELUActivation, SiLUActivation):
        monkeypatch.setitem(deep_lift.SUPPORTED_NON_LINEAR, activation, deep_lift.nonlinear)
    # OPT's MLP works on [B * T, D], which Captum does not split into halves correctly.
    model, names = wide_model(kind), ["resid_post.0"] + (["mlp_out.1"] if kind != "opt" else [])
    found = layer_scores(kind, "layer_deeplift", baseline=7, layers=names)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        for name in names:
            method = captums(captum.attr.LayerDeepLift, model, target, name)
            expected = method(embeddings_of(model, ids), embeddings_of(model, [7] * len(ids)))
            assert_near(found[name][: len(ids), step], expected)


@pytest.mark.parametrize("method", ["layer_integrated_gradients", "layer_deeplift"])
def test_layer_methods_read_the_foil_outside_of_what_they_overwrite(method):
    contrast = {"attributed_fn": "contrast_prob_diff", "contrast_targets": FOIL, "contrast": "own_prefix"}
    found = layer_scores("llama", method, layers=["mlp_out.1"], **contrast)["mlp_out.1"]
    plain = layer_scores("llama", method, layers=["mlp_out.1"])["mlp_out.1"]
    assert_near(found[: N_PROMPT + 1, 1], plain[: N_PROMPT + 1, 1])


def test_layers_are_chosen_by_name_site_and_number():
    model = wide_model("gpt2")
    assert layer_names(model, None) == ALL
    assert layer_names(model, "mlp_out") == [f"mlp_out.{layer}" for layer in range(L)]
    assert layer_names(model, ["attn_out.3", 1, "attn_out.1"]) == [
        "attn_out.3", "resid_post.1", "attn_out.1", "mlp_out.1"
    ]  # fmt: skip
    assert layer_names(model, -1) == layer_names(model, L - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["mlp_uot.1"]},
            "unknown activation 'mlp_uot.1'; did you mean 'mlp_out'? Allowed: resid_post, attn_out, mixer_out, "
            "mlp_out, each for all layers, or with a layer, as 'resid_post.3'",
        ),
        ({"layers": [4]}, "layer 4 does not exist; this model has layers 0 to 3"),
        ({"layers": -5}, "layer -5 does not exist; this model has layers 0 to 3"),
        ({"layers": "mlp_out.4"}, "layer 4 does not exist; this model has layers 0 to 3"),
        ({"layers": []}, "layers is empty; leave it out for all layers"),
        (
            {"attributed_fn": "mc_dropout_mean"},
            "'mc_dropout_mean' needs several passes, but layer methods use one; attribute another function",
        ),
    ],
)
def test_wrong_layers_are_errors(options, message):
    with pytest.raises(InputError) as error:
        layer_scores("llama", **options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "method",
    ["deeplift", "layer_gradient_x_activation", "layer_integrated_gradients", "layer_deeplift"],
)
def test_no_hook_is_left_after_an_exception(method):
    model = wide_model("llama")

    def failing(reading):
        if torch.is_grad_enabled():
            raise ZeroDivisionError
        return reading.logits[:, 0]

    register_step_function(failing, "failing")
    try:
        with pytest.raises(ZeroDivisionError):
            attribute(model, TOKENIZER, PROMPT, TARGET, method=method, attributed_fn="failing")
    finally:
        del FUNCTIONS["failing"]
    assert not hooks_on(model)
    assert all(weight.grad is None for weight in model.parameters())
