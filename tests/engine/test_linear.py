"""Linear layers by oneDNN, compared with a float64 product; and cases in which the layer itself is called."""

import pytest
import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.pytorch_utils import Conv1D

from interpret.engine import linear
from interpret.engine.linear import gated, quick, rounded_alike


def layer_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made = {
        "bias": nn.Linear(24, 40),
        "no bias": nn.Linear(24, 40, bias=False),
        "conv": Conv1D(40, 24),
    }[kind]
    nn.init.normal_(made.weight)
    return made.requires_grad_(False)


def inputs(kind: str) -> torch.Tensor:
    torch.manual_seed(1)
    return {
        "one row": torch.randn(1, 24),
        "cells": torch.randn(3, 2, 5, 24),
        "no token": torch.randn(3, 2, 0, 24),
        "a slice": torch.randn(3, 2, 5, 24)[:, :, 1:4],
        "expanded": torch.randn(1, 2, 5, 24).expand(3, -1, -1, -1),
        "turned": torch.randn(24, 7).t(),
    }[kind]


@pytest.mark.parametrize("layer", ["bias", "no bias", "conv"])
@pytest.mark.parametrize("x", ["one row", "cells", "no token", "a slice", "expanded", "turned"])
@torch.no_grad()
def test_it_is_the_layers_product(layer, x):
    module, x = layer_of(layer), inputs(x)
    expected = module.double()(x.double())
    found = quick(module.float())(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", ["bias", "no bias", "conv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_are_taken_back_to_the_input(layer, dtype):
    module = layer_of(layer).to(dtype)
    x, at = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, 5, 40, dtype=dtype)
    found = quick(module).pull(at)
    assert found.dtype == dtype
    assert not found.requires_grad
    output = module.double()(x)
    for taken_back, one in zip(found, at, strict=True):
        (expected,) = torch.autograd.grad(output, x, one.double(), retain_graph=True)
        assert torch.allclose(taken_back.double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_changed_weight_counts():
    module, x = layer_of("bias"), inputs("cells")
    product = quick(module)
    before = product(x)
    module.weight.mul_(2)
    assert torch.allclose(product(x), 2 * (before - module.bias) + module.bias, atol=1e-4)


def test_the_default_dtype_of_the_moment_decides_nothing():
    linear._operator.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert (linear._operator() is None) == (not torch.backends.mkldnn.is_available())
    finally:
        torch.set_default_dtype(torch.float32)
        linear._operator.cache_clear()


class Adapted(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, x):
        return super().forward(x) + 1


def hooked(module):
    module.register_forward_hook(lambda module, args, output: output + 1)
    return module


def offloaded(module):
    """Replace the method of one object, as accelerate does."""
    plain = module.forward
    module.forward = lambda x: plain(x) + 1
    return module


@pytest.mark.parametrize("change", [hooked, offloaded])
@torch.no_grad()
def test_what_others_put_on_a_layer_is_called(change):
    module, x = layer_of("bias"), inputs("cells")
    plain = module(x)
    product = quick(module)
    change(module)
    assert torch.allclose(product(x), plain + 1, atol=1e-5)


@torch.no_grad()
def test_what_others_put_before_a_layer_is_called():
    module, x = layer_of("bias"), inputs("cells")
    product = quick(module)
    module.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    assert torch.allclose(product(x), 2 * x @ module.weight.T + module.bias, atol=1e-4)


def test_a_layer_that_takes_a_view_is_given_what_has_one():
    module, x = layer_of("conv"), inputs("a slice")
    assert torch.is_grad_enabled(), "else the layer itself is not called"
    assert torch.allclose(quick(module)(x), x @ module.weight + module.bias, atol=1e-5)


@torch.no_grad()
def test_other_kinds_of_layers_are_left_alone():
    adapted, x = Adapted(24, 40), inputs("cells")
    norm = nn.LayerNorm(24)
    assert torch.allclose(quick(adapted)(x), adapted(x), atol=1e-6)
    assert quick(norm) is norm


ACTIVATIONS = {"SiLU": nn.SiLU(), "SiLU of transformers": SiLUActivation(), "GELU": nn.GELU(), "tanh": torch.tanh}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
@pytest.mark.parametrize("layer", ["bias", "no bias", "conv"])
@pytest.mark.parametrize("x", ["one row", "cells", "no token", "a slice"])
@torch.no_grad()
def test_gated_neurons_are_the_product_of_activated_gate_and_up(activation, layer, x):
    gate, up, x = layer_of(layer), layer_of(layer), inputs(x)
    nn.init.normal_(up.weight)
    found = gated(activation, quick(gate), quick(up), x)
    expected = activation(gate.double()(x.double())) * up.double()(x.double())
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("changed", ["gate", "up", "activation"])
@pytest.mark.parametrize("change", [hooked, offloaded])
@torch.no_grad()
def test_what_others_put_on_a_part_of_gated_neurons_is_called(change, changed):
    parts = {"gate": layer_of("bias"), "up": layer_of("bias"), "activation": nn.SiLU()}
    x = inputs("cells")
    change(parts[changed])
    expected = parts["activation"](parts["gate"](x)) * parts["up"](x)
    found = gated(parts["activation"], quick(parts["gate"]), quick(parts["up"]), x)
    assert torch.allclose(found, expected, atol=1e-4)


@torch.no_grad()
def test_gated_neurons_do_not_need_the_operator(monkeypatch):
    gate, up, x = layer_of("bias"), layer_of("bias"), inputs("cells")
    by_operator = gated(nn.SiLU(), quick(gate), quick(up), x)
    monkeypatch.setattr(linear, "_gated_operator", lambda: None)
    assert torch.allclose(gated(nn.SiLU(), quick(gate), quick(up), x), by_operator, atol=1e-4)


class OfRows(nn.Linear):
    """A layer that accepts only a matrix, like those of bitsandbytes."""

    def forward(self, x):
        assert x.dim() == 2
        return super().forward(x)


@torch.no_grad()
def test_quantised_layers_are_given_a_matrix():
    module, x = OfRows(24, 40), inputs("cells")
    assert torch.allclose(quick(module)(x), x @ module.weight.T + module.bias, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_go_through_the_layer(dtype):
    module, x = layer_of("bias").to(dtype), inputs("cells").to(dtype)
    assert torch.equal(quick(module)(x), module(x))


def test_gradients_flow_where_they_are_wanted():
    module, x = layer_of("bias"), inputs("cells").requires_grad_()
    quick(module)(x).sum().backward()
    assert torch.allclose(x.grad, module.weight.sum(0).expand_as(x), atol=1e-5)


@pytest.mark.parametrize(
    "operator",
    [
        lambda x, weight, bias, *rest: torch.zeros(2, 1, 3),
        None,
    ],
    ids=["a wrong operator", "none"],
)
@torch.no_grad()
def test_a_torch_without_a_sound_operator_uses_the_layer(monkeypatch, operator):
    class Operators:
        if operator is not None:
            _linear_pointwise = staticmethod(operator)

    monkeypatch.setattr(torch.ops, "mkldnn", Operators, raising=False)
    for found in (linear._operator, linear._gated_operator):
        found.cache_clear()
    try:
        module, x, silu = layer_of("bias"), inputs("cells"), nn.SiLU()
        assert torch.equal(quick(module)(x), module(x))
        assert torch.equal(gated(silu, quick(module), quick(module), x), silu(module(x)) * module(x))
    finally:
        for found in (linear._operator, linear._gated_operator):
            found.cache_clear()


@pytest.mark.parametrize("count", [1, 2, 3])
@torch.no_grad()
def test_in_float16_few_rows_are_rounded_as_each_of_many(count):
    generator = torch.Generator().manual_seed(0)
    for width in (32, 40, 64, 96, 130):
        layer = nn.Linear(64, width).half()
        layer.weight.data.normal_(generator=generator)
        rows = torch.randn(24, 64, generator=generator).half()
        assert torch.equal(torch.cat([quick(layer)(part) for part in rows.split(count)]), quick(layer)(rows))


def test_in_float16_a_small_batch_of_products_is_rounded_as_a_large_one():
    generator = torch.Generator().manual_seed(0)
    rows, matrices = (torch.randn(256, n, m, generator=generator).half() for n, m in ((14, 16), (16, 7)))

    def product(start: int, end: int) -> torch.Tensor:
        factor = matrices[start:end]
        return rounded_alike(lambda part: torch.bmm(part, factor), rows[start:end], factor.numel())

    assert torch.equal(torch.cat([product(start, start + 2) for start in range(0, 256, 2)]), product(0, 256))
