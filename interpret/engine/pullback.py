"""Derivatives of the outputs of one run, for many outputs at once: vector-Jacobian products without a graph.

Autograd would keep a graph of the whole run and read it once for each output. Here a layer is run once, and returns,
besides its output, a function that takes derivatives at the output back to the input: its pullback. G derivatives are
taken back side by side, as if they were texts of one batch, so that each linear layer is one large product. A token
does not depend on later ones, so derivatives of an output at token N are taken back through the first N tokens only.

Products, attention and residual connections are differentiated here; norms and what precedes the first layer by
autograd, for each module alone. Shapes: G derivatives, B rows of the run, T tokens of the run, N <= T tokens that the
derivatives cover, D hidden width, H heads, K key-value heads, W width of a head, F neurons. What is kept of a run may
have 1 row in place of B, or further rows after them, which take no part.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import Block, attention_weights, capped, packed, rotated, unfused
from interpret.anatomy.passes import foreign_changes, grad_mode
from interpret.engine.layers import Layer
from interpret.engine.linear import LinearLayer, Module
from interpret.engine.masks import masks_for
from interpret.engine.trunk import Trunk

Pull = Callable[[Tensor], Tensor]
"""Takes the derivatives at an output, [G, B, N, ...], back to the input."""
Slope = Callable[[Module, Tensor], Tensor]
"""(activation function, its input [R, T, F]) -> the slope to multiply derivatives by, [B, T, F]."""


def derivative(activation: Module, x: Tensor) -> Tensor:
    """Return the derivative of an activation function, which acts on each number alone, at ``x``."""
    with grad_mode(True):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(activation(x).sum(), x)[0]


@dataclass(frozen=True)
class LayerRun:
    """One layer that was run: what it computed, and how derivatives are taken back through it."""

    block: Block
    output: Tensor
    """[B, T, D]."""
    added: dict[str, Tensor]
    """What attention and MLP added to the residual stream, ``attn_out`` and ``mlp_out``, [B, T, D]."""
    attention: Pull
    """From ``attn_out`` back to the layer's input, without the residual connection."""
    mlp: Pull
    """From ``mlp_out`` back to what the MLP reads, without the residual connection."""
    first_norm: Pull
    """The norm after the attention's sum in post_norm layers; otherwise nothing."""
    last_norm: Pull
    """The norm after the MLP's sum in post_norm layers; otherwise nothing."""

    def at_mlp(self, at_output: Tensor) -> Tensor:
        """Return the derivatives at ``mlp_out``, for those at the output, [G, B, N, D]."""
        return self.last_norm(at_output)

    def at_attention(self, at_mlp: Tensor) -> Tensor:
        """Return the derivatives at ``attn_out``, for those at ``mlp_out``."""
        return at_mlp if self.block == "parallel" else self.first_norm(self.mlp(at_mlp).add_(at_mlp))

    def at_input(self, at_attention: Tensor) -> Tensor:
        """Return the derivatives at the layer's input, for those at ``attn_out``."""
        at_input = self.attention(at_attention).add_(at_attention)
        return at_input.add_(self.mlp(at_attention)) if self.block == "parallel" else at_input


@dataclass(frozen=True)
class DifferentiableRun:
    """Layers that were run one after the other, from layer ``first`` on."""

    layers: list[LayerRun]
    first: int
    start: Tensor
    """The input of the first of them, [B, T, D]."""

    @property
    def last(self) -> Tensor:
        """The last layer's output, [B, T, D]."""
        return self.layers[-1].output if self.layers else self.start

    def input(self, layer: int) -> Tensor:
        """Return the input of a layer, [B, T, D]."""
        return self.start if layer == self.first else self.layers[layer - self.first - 1].output

    def derivatives(self, at_last: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the derivatives at activations, [G, B, N, D], from the last layer to the first.

        Args:
            at_last: the derivatives at the last layer's output.

        Yields:
            Names, as ``mlp_out.3``, and derivatives: of each layer ``resid_post``, ``mlp_out`` and ``attn_out``; at
            last of the first layer's input, as ``resid_pre``. What is not asked for is not computed.
        """
        at = at_last
        for index in reversed(range(len(self.layers))):
            layer, number = self.layers[index], self.first + index
            at = at.to(layer.output.device)
            yield f"resid_post.{number}", at
            at = layer.at_mlp(at)
            yield f"mlp_out.{number}", at
            at = layer.at_attention(at)
            yield f"attn_out.{number}", at
            at = layer.at_input(at)
        yield f"resid_pre.{self.first}", at


def run_layers(
    trunk: Trunk, x: Tensor, *, first: int = 0, given: Mapping[str, Tensor] | None = None, slope: Slope = derivative
) -> DifferentiableRun:
    """Run the layers from layer ``first`` on, so that derivatives can be taken back.

    Args:
        trunk: the model's parts, see ``takes_back``.
        x: [B, T, D], the input of layer ``first``.
        first: index of a layer; that of the number of layers runs none.
        given: values, [B, T, D], that replace what the attention (``attn_out``) or the MLP (``mlp_out``) of layer
            ``first`` adds to the residual stream.
        slope: replaces the derivative of the activation functions of the MLPs.
    """
    layers, found = trunk.layers[first:], list[LayerRun]()
    start, masks = x, masks_for(layers, x.shape[1], 0, x)
    with grad_mode(False):
        for layer, mask in zip(layers, masks, strict=True):
            here = {} if found else {name: value.to(layer.device) for name, value in (given or {}).items()}
            x = x.to(layer.device)
            found.append(_run_layer(layer, x, mask.to(x), here, slope))
            x = found[-1].output
    return DifferentiableRun(found, first, start)


def takes_back(model: PreTrainedModel, trunk: Trunk) -> bool:
    """Return whether derivatives can be taken back through a model's parts.

    All products must be plain linear layers in full precision, without mixtures of experts; and no hook or adapter may
    change what a module computes, or its derivative.
    """
    products = [
        product
        for layer in trunk.layers
        for product in (*layer.projections, layer.attention_out, layer.gate, layer.up, layer.down)
        if product is not None
    ]
    return (
        all(layer.whole_mlp is None for layer in trunk.layers)
        and all(isinstance(product, LinearLayer) for product in products)
        and len({weight.dtype for weight in model.parameters()}) == 1
        and model.dtype in (torch.float32, torch.float64)
        and not any(
            foreign_changes(module) or module._backward_hooks or module._backward_pre_hooks
            for module in model.modules()
        )
    )


def _run_layer(layer: Layer, x: Tensor, mask: Tensor, given: Mapping[str, Tensor], slope: Slope) -> LayerRun:
    before, after = (layer.block != "post_norm"), (layer.block == "post_norm")
    attention, pull_attention = _added(layer, given.get("attn_out"), lambda: _attention(layer, x, mask, normed=before))
    middle, pull_first = _norm(layer.attention_norm if after else _unchanged, x + attention)
    read = x if layer.block == "parallel" else middle
    mlp, pull_mlp = _added(layer, given.get("mlp_out"), lambda: _mlp(layer, read, slope, normed=before))
    output, pull_last = _norm(layer.mlp_norm if after else _unchanged, middle + mlp)
    added: dict[str, Tensor] = {"attn_out": attention, "mlp_out": mlp}
    return LayerRun(layer.block, output, added, pull_attention, pull_mlp, pull_first, pull_last)


def _through(product: Module | None, at: Tensor) -> Tensor:
    """Take derivatives at the output of a linear layer back to its input."""
    assert isinstance(product, LinearLayer)
    return product.pull(at)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _added(layer: Layer, given: Tensor | None, run: Callable[[], tuple[Tensor, Pull]]) -> tuple[Tensor, Pull]:
    """Return what a module adds to the residual stream, and its pullback; a given value is a constant."""
    if given is not None:
        return given, torch.zeros_like
    output, pull = run()
    factor = layer.residual_factor
    return (output, pull) if factor == 1 else (output * factor, lambda at: pull(at * factor))


def _kept(value: Tensor, at: Tensor) -> Tensor:
    """Return the part of a value, [R, T, ...], that derivatives [G, B, N, ...] are about, [B or 1, N, ...]."""
    return value[: at.shape[1], : at.shape[2]]


def _norm(module: Module, x: Tensor) -> tuple[Tensor, Pull]:
    """Run a norm, or any module that acts on each token alone."""
    output = module(x)
    if output is x:  # there is no such norm
        return x, _unchanged

    if (rms := _rms(module, x)) is not None:
        return output, rms

    def pull(at: Tensor) -> Tensor:
        with grad_mode(True):
            point = _kept(x, at).expand(*at.shape[:-1], -1).detach().requires_grad_()
            return torch.autograd.grad(module(point), point, at)[0]

    return output, pull


_OFFSETS: WeakKeyDictionary[nn.Module, tuple[object, float | None]] = WeakKeyDictionary()
"""The code of a norm and its offset, found once, because a GPU waits for a comparison."""


def _offset(module: Any, like: Tensor) -> float | None:
    """Return what an RMSNorm adds to its weight, as Gemma's adds 1; None if the module is no RMSNorm.

    It is called on numbers of which the mean is not 0: on others, a LayerNorm without a bias gives the same.
    """
    code = getattr(module.forward, "__func__", module.forward)
    if module not in _OFFSETS or _OFFSETS[module][0] is not code:
        x = torch.linspace(0.5, 1.5, like.shape[-1]).to(like)
        weight, unit = module.weight, x * torch.rsqrt(x.square().mean() + _eps(module))
        found = [offset for offset in (0.0, 1.0) if torch.allclose(module(x), unit * (weight + offset), rtol=1e-4)]
        _OFFSETS[module] = code, found[0] if found else None
    return _OFFSETS[module][1]


def _eps(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _rms(module: Any, x: Tensor) -> Pull | None:
    """Return the pullback of an RMSNorm, w x / rms(x); None if the module is none.

    The derivative is w / rms(x), without the part along x: Zhang and Sennrich 2019 (arXiv:1910.07467), section 4.
    Three products per number; autograd would compute the norm again for each derivative, and take a dozen.
    """
    eps = _eps(module)
    if getattr(module, "weight", None) is None or eps is None or (offset := _offset(module, x)) is None:
        return None
    scale, factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps), module.weight.detach() + offset
    unit = x * scale

    def pull(at: Tensor) -> Tensor:
        along, at = _kept(unit, at), at * factor
        at.addcmul_(along, (at * along).mean(-1, keepdim=True), value=-1)
        return at.mul_(_kept(scale, at))

    return pull


def _mlp(layer: Layer, x: Tensor, slope: Slope, *, normed: bool) -> tuple[Tensor, Pull]:
    read, pull_norm = _norm(layer.mlp_norm if normed else _unchanged, x)
    neurons, pull_neurons = _neurons(layer, read, slope)
    output, pull_after = _norm(layer.mlp_after, layer.down(neurons))
    return output, lambda at: pull_norm(pull_neurons(_through(layer.down, pull_after(at))))


def _neurons(layer: Layer, x: Tensor, slope: Slope) -> tuple[Tensor, Pull]:
    """Return the activations of the neurons, [B, T, F], and their pullback."""
    if layer.gate is None and not layer.gated_up:
        before = layer.up(x)
        steep = slope(layer.activation, before)
        return layer.activation(before), lambda at: _through(layer.up, at * _kept(steep, at))
    gate, up = layer.up(x).chunk(2, dim=-1) if layer.gate is None else (layer.gate(x), layer.up(x))
    active: Tensor = layer.activation(gate)
    steep = slope(layer.activation, gate) * up

    def pull(at: Tensor) -> Tensor:
        at_gate, at_up = at * _kept(steep, at), at * _kept(active, at)
        if layer.gated_up:
            return _through(layer.up, torch.cat([at_gate, at_up], dim=-1))
        return _through(layer.gate, at_gate).add_(_through(layer.up, at_up))

    return active * up, pull


def _attention(layer: Layer, x: Tensor, mask: Tensor, *, normed: bool) -> tuple[Tensor, Pull]:
    read, pull_norm = _norm(layer.attention_norm if normed else _unchanged, x)
    (queries, keys, values), pull_projections = _project(layer, read)
    mixed, pull_heads = _attend(layer, queries, keys, values, mask)
    output, pull_after = _norm(layer.attention_after, layer.attention_out(mixed))
    return output, lambda at: pull_norm(pull_projections(*pull_heads(_through(layer.attention_out, pull_after(at)))))


def _project(layer: Layer, x: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Callable[..., Tensor]]:
    """Return queries, [B, T, H, W], keys and values, [B, T, K, W], and their pullback; queries and keys are rotated."""
    if layer.fused:
        queries, keys, values = unfused(layer.projections[0](x), layer.fused, layer.n_heads, layer.n_key_heads)
    else:
        queries, keys, values = (of(x).unflatten(-1, (-1, layer.head_width)) for of in layer.projections)
    queries, pull_queries = _turn(layer, layer.query_norm, queries)
    keys, pull_keys = _turn(layer, layer.key_norm, keys)

    def pull(at_queries: Tensor, at_keys: Tensor, at_values: Tensor) -> Tensor:
        parts = (pull_queries(at_queries), pull_keys(at_keys), at_values)
        if layer.fused:
            return _through(layer.projections[0], packed(*parts, layer.fused))
        ask, key, value = (_through(of, part.flatten(-2)) for of, part in zip(layer.projections, parts, strict=True))
        return ask.add_(key).add_(value)

    return (queries, keys, values), pull


def _turn(layer: Layer, norm: Module, part: Tensor) -> tuple[Tensor, Pull]:
    """Norm and rotate queries or keys, [B, T, H, W]."""
    normed, pull_norm = _norm(norm, part if layer.norms_heads else part.flatten(-2))

    def pull(at: Tensor) -> Tensor:
        # The transpose of a rotation turns back.
        at = _rotated(layer, at, -1)
        return pull_norm(at if layer.norms_heads else at.flatten(-2)).reshape(at.shape)

    return _rotated(layer, normed.reshape(part.shape), 1), pull


def _rotated(layer: Layer, part: Tensor, direction: int) -> Tensor:
    """Rotate queries or keys, [..., N, H, W], forwards (1) or back (-1)."""
    if layer.rotation is None:
        return part
    cos, sin = (table[: part.shape[-3], None] for table in layer.rotation)  # [N, 1, width]
    return rotated(part, cos, direction * sin, layer.rotary)


def _attend(
    layer: Layer, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """Return the concatenated outputs of the heads, [B, T, H * W], and their pullback to queries, keys and values."""
    H, K = layer.n_heads, layer.n_key_heads
    # By key-value head, [B, K, ...]: the H / K heads that share one stand among its rows.
    queries = (queries * layer.scale).unflatten(2, (K, H // K)).permute(0, 2, 3, 1, 4)  # [B, K, H / K, T, W]
    keys, values = (part.transpose(1, 2)[:, :, None] for part in (keys, values))  # [B, K, 1, T, W]
    scores = capped(queries @ keys.transpose(-1, -2), layer.softcap)
    bend = None if layer.softcap is None else 1 - (scores / layer.softcap) ** 2  # the derivative of the cap
    sinks = None if layer.sinks is None else layer.sinks.view(K, H // K, 1, 1)
    weights = attention_weights(scores + mask, sinks, scores.dtype)  # [B, K, H / K, T, T]
    mixed = (weights @ values).permute(0, 3, 1, 2, 4).flatten(2)

    def pull(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        G, B, N = at.shape[:3]
        # Of the rows of the run that take part, and for each derivative: [B or 1, K, 1, H / K, N, ...].
        ask = queries[:B, :, None, :, :N]
        key, value = (part[:B, :, 0, :N] for part in (keys, values))  # [B or 1, K, N, W]
        seen = weights[:B, :, None, :, :N, :N]
        at = at.unflatten(-1, (K, H // K, -1)).permute(1, 3, 0, 4, 2, 5).reshape(B, K, G, -1, layer.head_width)
        # One product per key-value head, over G * H / K * N rows.
        at_weights = at.flatten(2, 3) @ value.transpose(-1, -2)
        at_scores = at_weights.view(B, K, G, -1, N, N).mul_(seen)  # [B, K, G, H / K, N, N]
        at_scores = at_scores.addcmul_(seen, at_scores.sum(-1, keepdim=True), value=-1)
        if bend is not None:
            at_scores.mul_(bend[:B, :, None, :, :N, :N])
        at_scores = at_scores.flatten(3, 4)
        at_queries = ((at_scores.flatten(2, 3) @ key) * layer.scale).view(B, K, G, -1, N, layer.head_width)
        # The heads that share a key or value add up: one product over H / K * N rows.
        at_keys = at_scores.transpose(-1, -2) @ ask.flatten(3, 4)  # [B, K, G, N, W]
        at_values = seen.flatten(3, 4).transpose(-1, -2) @ at
        at_queries = at_queries.permute(2, 0, 4, 1, 3, 5).flatten(3, 4)  # [G, B, N, H, W]
        return at_queries, at_keys.permute(2, 0, 3, 1, 4), at_values.permute(2, 0, 3, 1, 4)

    return mixed, pull
