"""Layers whose derivatives follow the rules of layer-wise relevance propagation (LRP), with the same outputs.

Autograd through these layers gives the coefficients of RelP (Rezaei Jafari, Eberle, Khakzar & Nanda 2025,
arXiv:2508.21258) in place of gradients. Each rule replaces a nonlinear part by a linear one that has the same
value at the given run:

- norms: the scale is a constant (Ali et al. 2022, arXiv:2202.07304); the mean is still subtracted;
- attention: the pattern is a constant, so nothing flows through queries and keys (same source);
- activation functions: ``f(x) = x * c`` with the constant ``c = f(x) / x``;
- gated MLPs: half of the derivative of a product to each factor.

Letters are those of ``engine.layers``.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from interpret.anatomy import centres, norm_epsilon, norm_weight
from interpret.engine.layers import Layer
from interpret.engine.linear import Module
from interpret.engine.recording import record_run
from interpret.engine.trunk import Trunk
from interpret.errors import UnsupportedModelError

_NOTHING = 1e-4
"""What an activation function may give for 0: that of Apertus gives 1e-7."""

_COMPARED = 8
"""Number of tokens for which outputs are compared."""


@dataclass(frozen=True)
class RelevanceLayer(Layer):
    """A layer with the rules of LRP; its norms and its activation function have them too."""

    def pattern(self, scores: Tensor, sinks: Tensor | None) -> Tensor:
        """Return the attention weights, as constants."""
        return super().pattern(scores, sinks).detach()

    def neurons(self, normed: Tensor) -> Tensor:
        """Return the activations of the neurons, as ``Layer.neurons``."""
        if self.gate is None and not self.gated_up:
            return super().neurons(normed)
        gate, up = self.up(normed).chunk(2, dim=-1) if self.gate is None else (self.gate(normed), self.up(normed))
        return _halved(self.activation(gate), up)


def with_rules(trunk: Trunk, start: Tensor) -> Trunk:
    """Return the parts of a model, with the rules of LRP for their derivatives.

    Args:
        trunk: the parts of the model.
        start: inputs of its first layer, [B, T, D]; outputs are compared for their first tokens.

    Raises:
        UnsupportedModelError: if there are no rules for a part; the message names it.
    """
    if any(layer.whole_mlp is not None for layer in trunk.layers):
        raise UnsupportedModelError(
            f"RelP has no rules for the mixtures of experts of {trunk.anatomy.family.name} models; estimate their "
            "effects by the method approximate"
        )
    layers: list[Layer] = [_layer(layer, start) for layer in trunk.layers]
    end = replace(trunk.end, final=[_norm(module, start) for module in trunk.end.final])
    found = replace(trunk, layers=layers, end=end)
    _check_outputs(trunk, found, start[:, :_COMPARED])
    return found


def _check_outputs(trunk: Trunk, found: Trunk, start: Tensor) -> None:
    """Check that parts with rules give the outputs of those without, for inputs of the first layer, [B, T, D]."""
    expected, states = (record_run(of.layers, start, ()).states for of in (trunk, found))
    tolerance = 1e-3 if start.dtype in (torch.float32, torch.float64) else 0.1
    pairs = [*zip(expected, states, strict=True), (trunk.leave(expected[-1]), found.leave(states[-1]))]
    for index, (one, other) in enumerate(pairs):
        one, other = one.float(), other.float()
        # Token by token, because the states of the first token may be much larger than all others.
        if ((one - other).norm(dim=-1) > tolerance * one.norm(dim=-1)).any():
            where = "the final norm" if index == len(pairs) - 1 else f"layer {index - 1}"
            raise UnsupportedModelError(
                f"the rules of RelP do not give the outputs of {where} of this {trunk.anatomy.family.name} model, "
                "which has another norm or activation function; use the method approximate"
            )


def _layer(layer: Layer, like: Tensor) -> RelevanceLayer:
    like = like.to(layer.device)
    parts: dict[str, Any] = {field.name: getattr(layer, field.name) for field in fields(layer)}
    norms = ("attention_norm", "attention_after", "mlp_norm", "mlp_after")
    parts |= {name: _norm(parts[name], like) for name in norms}
    return RelevanceLayer(**parts | {"activation": _activation(layer.activation, like)})


def _norm(module: Module, like: Tensor) -> Module:
    """Return a norm whose scale is a constant; other modules, which are linear, as they are."""
    if not isinstance(module, nn.Module):
        return module
    weight, bias = norm_weight(module, like), getattr(module, "bias", None)
    epsilon, centred = norm_epsilon(module) or 0.0, centres(module)

    def run(x: Tensor) -> Tensor:
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        spread = full - full.mean(-1, keepdim=True) if centred else full
        scale = torch.rsqrt(spread.detach().square().mean(-1, keepdim=True) + epsilon)
        normed = (spread * scale * weight.to(full)).to(x.dtype)
        return normed if bias is None else normed + bias

    return run


def _activation(function: Module, like: Tensor) -> Module:
    """Return an activation function as a product of its input and a constant."""
    if function(torch.zeros_like(like[0, 0])).abs().max() > _NOTHING:
        raise UnsupportedModelError(
            f"the activation function {function} is not 0 at 0, so RelP has no rule for it; use the method approximate"
        )

    def run(x: Tensor) -> Tensor:
        # 0 / 0 is replaced by its limit from above.
        point = x.detach().masked_fill(x == 0, torch.finfo(x.dtype).eps)
        return x * (function(point) / point).detach()

    return run


def _halved(one: Tensor, other: Tensor) -> Tensor:
    """Return the product of both; each gets half of its derivative."""
    return (one * other.detach() + one.detach() * other) / 2
