"""Derivatives taken back through the parts of a model, compared with autograd through the whole model."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from interpret.anatomy import anatomy_of
from interpret.attribution.steps.step import hidden_states
from interpret.engine import pullback
from interpret.engine.pullback import run_layers, takes_back
from interpret.engine.trunk import trunk_of
from interpret.models.quantize import quantize_
from reference.kinds import KINDS
from reference.tiny import tiny_model

G, B, T, N = 3, 2, 9, 7
"""Derivatives, rows of the run, their tokens, and tokens the derivatives cover."""


def embeddings_for(model):
    width = model.get_input_embeddings().weight.shape[1]
    return 0.3 * torch.randn(B, T, width, generator=torch.Generator().manual_seed(1))


@contextmanager
def outputs_of(model):
    """Collect the outputs that the model's own layers, their attention and their MLP add to the residual stream."""
    anatomy, seen, handles = anatomy_of(model), {}, []
    paths = {"resid_post": "", "attn_out": anatomy.family.attention_output, "mlp_out": anatomy.family.mlp_last}
    for index, layer in enumerate(anatomy.layers):
        for site, path in paths.items():

            def keep(module, args, output, name=f"{site}.{index}"):
                value = output[0] if isinstance(output, tuple) else output
                value = value.view(B, T, -1)
                seen[name] = value
                new = value.view((output[0] if isinstance(output, tuple) else output).shape)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            handles.append(layer.get_submodule(path).register_forward_hook(keep))
    yield seen
    for handle in handles:
        handle.remove()


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * expected.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_at_every_activation_are_those_of_autograd(kind):
    model, embeddings = tiny_model(kind), embeddings_for(tiny_model(kind))
    trunk = trunk_of(model, T)
    assert takes_back(model, trunk)
    with torch.no_grad():
        run = run_layers(trunk, trunk.enter(embeddings))
    with outputs_of(model) as seen:
        hidden_states(model, embeddings.clone().requires_grad_())
    last = seen[f"resid_post.{len(trunk.layers) - 1}"]
    assert_near(run.last, last.detach())
    at_last = torch.zeros(G, B, N, last.shape[-1])
    at_last[:, :, -2:] = torch.randn(G, B, 2, last.shape[-1], generator=torch.Generator().manual_seed(2))
    found = dict(run.derivatives(at_last))
    assert found.keys() == {*seen, "resid_pre.0"}
    whole = torch.cat([at_last, torch.zeros(G, B, T - N, last.shape[-1])], dim=2)
    factor = trunk.layers[0].residual_factor  # that of Granite is part of what is added
    for name, value in seen.items():
        for taken_back, at in zip(found[name], whole, strict=True):
            (expected,) = torch.autograd.grad(last, value, at, retain_graph=True)
            assert not expected[:, N:].any()
            assert_near(taken_back if name.startswith("resid") else taken_back * factor, expected[:, :N])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_a_given_value_replaces_what_a_layer_computes(kind, site):
    model, layer = tiny_model(kind), 2
    trunk = trunk_of(model, T)
    with torch.no_grad():
        run = run_layers(trunk, trunk.enter(embeddings_for(model)))
    value = run.layers[layer].added[site]
    again = run_layers(trunk, run.input(layer), first=layer, given={site: value})
    assert_near(again.last, run.last)
    at_last = torch.randn(1, B, T, value.shape[-1], generator=torch.Generator().manual_seed(2))
    expected = dict(run.derivatives(at_last))[f"{site}.{layer}"]
    assert_near(next(at for name, at in again.derivatives(at_last) if name == f"{site}.{layer}"), expected)
    changed = run_layers(trunk, run.input(layer), first=layer, given={site: 2 * value})
    assert not torch.allclose(changed.last, run.last, atol=1e-2)


def test_no_layers_leave_a_value_as_it_is():
    trunk = trunk_of(tiny_model("llama"), T)
    x = torch.randn(B, T, 32)
    run = run_layers(trunk, x, first=len(trunk.layers))
    assert run.last is x
    ((name, at),) = run.derivatives(x[None])
    assert name == f"resid_pre.{len(trunk.layers)}"
    assert at.equal(x[None])


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: None)


def hooked_backward(model):
    model.model.layers[1].mlp.register_full_backward_hook(lambda module, at_input, at_output: None)


def adapted(model):
    class Adapted(nn.Linear):
        pass

    model.model.layers[1].mlp.up_proj.__class__ = Adapted


def in_half(model):
    model.bfloat16()


def in_eight_bits(model):
    quantize_(model, 8)


@pytest.mark.parametrize("change", [hooked, hooked_backward, adapted, in_half, in_eight_bits])
def test_other_models_are_left_to_autograd(change):
    model = copy.deepcopy(tiny_model("llama"))
    assert takes_back(model, trunk_of(model, T))
    change(model)
    assert not takes_back(model, trunk_of(model, T))


@pytest.mark.parametrize("kind", KINDS)
def test_only_an_rms_norm_is_taken_for_one(kind):
    model = tiny_model(kind)
    path = anatomy_of(model).family.mlp_norm or anatomy_of(model).parts.mlp_after
    norm = anatomy_of(model).layers[0].get_submodule(path)
    x = torch.randn(B, T, norm.weight.shape[-1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        known = pullback._rms(norm, x)
    assert (known is not None) == ("RMSNorm" in type(norm).__name__)


def test_a_layer_norm_without_bias_is_none_where_it_gives_the_same():
    norm = nn.LayerNorm(8, bias=False)
    x = torch.randn(1, T, 8)
    x -= x.mean(-1, keepdim=True)
    with torch.no_grad():
        assert torch.allclose(norm(x), nn.functional.rms_norm(x, (8,), eps=norm.eps), atol=1e-5)
        assert pullback._rms(norm, x) is None


def test_another_formula_of_a_norm_is_noticed():
    norm = nn.RMSNorm(8, eps=1e-6)
    x = torch.randn(1, T, 8)
    with torch.no_grad():
        assert pullback._rms(norm, x) is not None
        norm.forward = lambda x: x * norm.weight
        assert pullback._rms(norm, x) is None
