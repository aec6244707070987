"""A decoder layer, run part by part, so that what many runs share is computed and stored once.

The module names come from ``anatomy``; the computation is the same in all families. Shapes: C cells (runs computed
side by side), S samples, N tokens computed, P earlier tokens that all cells share, M tokens in between that each cell
has of its own, H heads, G key-value heads, W width of a head, F neurons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import (
    Anatomy,
    Block,
    Fused,
    Rotary,
    attention_scale,
    attention_sinks,
    attention_softcap,
    attention_weights,
    capped,
    head_width,
    input_device,
    key_heads,
    residual_factor,
    rotated,
    rotation,
    scores_dtype,
    text_config,
    unfused,
    window_of,
)
from interpret.anatomy.neurons import run_mlp
from interpret.engine.linear import Module, gated, quick, rounded_alike

Point = Literal["heads", "attn_out", "neurons", "mlp_out"]
"""Where a layer can be read and written. heads: the concatenated outputs of the heads, [..., H * W]. attn_out: what
the attention adds to the residual stream, [..., D]. neurons: the activations of the MLP's neurons, [..., F]. mlp_out:
what the MLP adds to the residual stream, [..., D]."""


class Tap(Protocol):
    """Reads and replaces the values at the points of a layer."""

    def given(self, point: Point) -> Tensor | None:
        """Return the value of all cells at the first token, [S, D], if it is known in advance; else None."""

    def taps(self, point: Point) -> bool:
        """Return whether ``at`` reads or replaces the values at a point; experts compute their neurons only then."""

    def at(self, point: Point, value: Tensor) -> Tensor:
        """Return the value to use instead of ``value``, [C, S, up to N, width], which it may change in place.

        If ``value`` has fewer than N tokens, they are the last ones: the first token is not among them.
        """


class Untapped:
    """A tap that changes nothing."""

    def given(self, point: Point) -> Tensor | None:
        """Return None: no value is known in advance."""
        return None

    def taps(self, point: Point) -> bool:
        """Return False: nothing is read."""
        return False

    def at(self, point: Point, value: Tensor) -> Tensor:
        """Return the value unchanged."""
        return value


@dataclass(frozen=True)
class Past:
    """Keys and values of the earlier tokens, the same for all cells; the keys are already rotated."""

    keys: Tensor
    """[S, G, P, W]."""
    values: Tensor
    """[S, G, P, W]."""


class Memory(Protocol):
    """Keys and values of each cell's own tokens, between the shared past and the tokens computed."""

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append those of the tokens computed, [S, G, C, N, W]; return all of each cell, [S, G, C, M + N, W]."""


@dataclass(frozen=True)
class Context:
    """What the N tokens computed attend to, and their positions."""

    past: Past
    mask: Tensor
    """[N, P + M + N], 0 where a token attends to another, -inf elsewhere. If cells or heads differ,
    [G or 1, C or 1, H / G or 1, N, P + M + N]."""
    columns: slice | Tensor
    """The N positions in the sequence, for the rotation of queries and keys."""
    memory: Memory | None = None


@dataclass(frozen=True)
class Layer:
    """The modules of one decoder layer and the settings of its attention."""

    block: Block
    attention_norm: Module
    projections: tuple[Module, ...]
    fused: Fused
    query_norm: Module
    key_norm: Module
    norms_heads: bool
    """Whether these norms act on each head; otherwise they act on all heads concatenated."""
    attention_out: Module
    attention_after: Module
    mlp_norm: Module
    gate: Module | None
    """None if there is no gate, or if the gate is part of ``up``."""
    gated_up: bool
    """Whether the first half of the output of ``up`` is the gate."""
    up: Module
    activation: Module
    down: Module
    whole_mlp: Callable[[Tensor, Tap], Tensor] | None
    """The MLP as one module, in place of gate, up, activation and down: a mixture of experts."""
    mlp_after: Module
    residual_factor: float
    """The factor on the outputs of attention and MLP; the points ``attn_out`` and ``mlp_out`` include it."""
    head_width: int
    n_heads: int
    n_key_heads: int
    scale: float
    scores_dtype: torch.dtype
    """The dtype of scores before the softmax."""
    softcap: float | None
    sinks: Tensor | None
    """For each head the score of a sink, [H]; None without sinks."""
    window: int | None
    """How many earlier tokens a token attends to; None if the number is not limited."""
    rotary: Rotary
    rotation: tuple[Tensor, Tensor] | None
    """Rotary cosines and sines, each [T, width]; None without rotary embeddings."""
    device: torch.device

    def neurons(self, normed: Tensor) -> Tensor:
        """Return the activations of the neurons, [..., F], for the MLP's normed input, [..., D]."""
        if self.gate is not None:
            return gated(self.activation, self.gate, self.up, normed)
        if not self.gated_up:
            return self.activation(self.up(normed))
        gate, up = self.up(normed).chunk(2, dim=-1)
        return self.activation(gate) * up

    def pattern(self, scores: Tensor, sinks: Tensor | None) -> Tensor:
        """Return the attention weights for masked scores, [..., T], and sinks of the shape [..., 1], float32."""
        return attention_weights(scores, sinks, torch.float32)


def layers_of(model: PreTrainedModel, anatomy: Anatomy, like: Tensor, n_tokens: int) -> list[Layer]:
    """Return the parts of every layer; ``like`` has the dtype of the hidden states, ``n_tokens`` is T.

    Raises:
        UnsupportedModelError: if the family is described without its parts.
    """
    config, parts = text_config(model), anatomy.parts
    width = head_width(config)

    def found(index: int, block: nn.Module) -> Layer:
        device = _device_of(block, model)

        def part(path: str) -> Any:
            return quick(block.get_submodule(path)) if path else _unchanged

        # A model may lack these norms.
        query_norm, key_norm = (
            path if path and _has(block, path) else "" for path in (parts.query_norm, parts.key_norm)
        )

        return Layer(
            block=anatomy.block,
            attention_norm=part(parts.attention_norm),
            projections=tuple(part(name) for name in parts.projections),
            fused=parts.fused,
            query_norm=part(query_norm),
            key_norm=part(key_norm),
            norms_heads=not key_norm or block.get_submodule(key_norm).get_parameter("weight").shape[-1] == width,
            attention_out=part(parts.attention_out),
            attention_after=part(parts.attention_after),
            mlp_norm=part(anatomy.family.mlp_norm),
            gate=part(parts.gate) if parts.gate not in ("", parts.up) else None,
            gated_up=parts.gate == parts.up,
            up=part(parts.up),
            # In OPT this is a plain function, not a module.
            activation=_attribute(block, parts.activation) if parts.down else _unchanged,
            down=part(parts.down),
            whole_mlp=None if parts.down else _WholeMLP(anatomy, index),
            mlp_after=part(parts.mlp_after),
            residual_factor=residual_factor(anatomy),
            head_width=width,
            n_heads=config.num_attention_heads,
            n_key_heads=key_heads(config),
            scale=attention_scale(anatomy, index),
            scores_dtype=scores_dtype(config, like.dtype),
            softcap=attention_softcap(anatomy.family, config),
            sinks=attention_sinks(anatomy, block),
            window=window_of(config, index),
            rotary=parts.rotary,
            rotation=rotation(anatomy, index, like.to(device), n_tokens),
            device=device,
        )

    return [found(index, block) for index, block in enumerate(anatomy.layers)]


def _unchanged(x: Tensor) -> Tensor:
    """Return ``x``; used in place of a module that the family does not have."""
    return x


@dataclass(frozen=True)
class _WholeMLP:
    """The MLP of one layer, run as one module."""

    anatomy: Anatomy
    layer: int
    """Index of the layer."""

    def __call__(self, x: Tensor, tap: Tap) -> Tensor:
        """Return the MLP's output, [..., N, D] -> [..., N, D]; its neurons are computed if the tap reads them."""

        def replaced(values: Tensor) -> Tensor:
            """Let the tap read and replace a copy of the values of all cells, [C, S, N, F]."""
            return tap.at("neurons", values.view(*x.shape[:-1], -1).clone()).view(values.shape)

        see = replaced if tap.taps("neurons") else None
        # [B, N, D], as the model calls it
        return run_mlp(self.anatomy, self.layer, x.reshape(-1, *x.shape[-2:]).contiguous(), see).reshape(x.shape)


def _has(block: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in block.named_modules())


def _attribute(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _device_of(block: nn.Module, model: PreTrainedModel) -> torch.device:
    """Return the device of a layer; offloaded parameters are moved to the device of the model's input."""
    parameter = next(block.parameters(), None)
    return input_device(model) if parameter is None or parameter.device.type == "meta" else parameter.device


def run_layer(layer: Layer, x: Tensor, context: Context, tap: Tap, first: int = 0) -> tuple[Tensor, Past]:
    """Run one layer for all cells at once.

    Args:
        layer: the layer's parts.
        x: [C, S, N, D], the layer's input at the tokens computed.
        context: what these tokens attend to.
        tap: reads and replaces the values at the points.
        first: tokens before this one only contribute keys and values; the output covers tokens ``first`` to N.

    Returns:
        The layer's output, [C, S, N - first, D], and the keys and values of the first cell's N tokens.
    """
    normed = x if layer.block == "post_norm" else layer.attention_norm(x)
    attention, own = _attention(layer, normed, context, tap, first)
    x = x[:, :, first:]
    if layer.block == "parallel":
        return x + attention + _mlp(layer, x, tap, first), own
    x = x + attention
    if layer.block == "post_norm":
        x = layer.attention_norm(x)
        return layer.mlp_norm(x + _mlp(layer, x, tap, first)), own
    return x + _mlp(layer, x, tap, first), own


def _attention(layer: Layer, normed: Tensor, context: Context, tap: Tap, first: int) -> tuple[Tensor, Past]:
    """Return the attention's output at tokens ``first`` to N, and the keys and values of all N tokens."""
    given = tap.given("attn_out") if first == 0 else None
    start = first if given is None else 1
    queries, keys, values = _project(layer, normed, start, context.columns)
    # Sample and key-value head first, then cells: [S, G, C, N, W].
    keys, values = (part.permute(1, 3, 0, 2, 4) for part in (keys, values))
    own = Past(keys[:, :, 0], values[:, :, 0])
    if start == normed.shape[2]:
        assert given is not None
        return tap.at("attn_out", given[None, :, None].expand(len(normed), -1, -1, -1)), own
    if context.memory is not None:
        keys, values = context.memory.extended(keys, values)
    mixed = _attend(layer, queries, keys, values, context.past, context.mask[..., start:, :])
    output = _added(layer, layer.attention_after(layer.attention_out(tap.at("heads", mixed))))
    return tap.at("attn_out", _with_first(given, output)), own


def _added(layer: Layer, output: Tensor) -> Tensor:
    """Return what an output adds to the residual stream."""
    return output if layer.residual_factor == 1 else output * layer.residual_factor


def _with_first(given: Tensor | None, rest: Tensor) -> Tensor:
    """Prepend the first token's value, [S, D], to those of the other tokens, [C, S, N - 1, D]."""
    if given is None:
        return rest
    return torch.cat([given[None, :, None].expand(len(rest), -1, -1, -1), rest], dim=2)


def _project(layer: Layer, normed: Tensor, start: int, columns: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [C, S, N - start, H, W] and keys and values [C, S, N, G, W]; queries and keys are rotated."""
    heads = (layer.n_heads, layer.n_key_heads, layer.n_key_heads)
    if layer.fused:
        parts = unfused(layer.projections[0](normed), layer.fused, *heads[:2])
        queries, keys, values = (part.flatten(-2) for part in parts)
        queries = queries[:, :, start:]
    else:
        ask, key, value = layer.projections
        queries, keys, values = ask(normed[:, :, start:]), key(normed), value(normed)
    if not layer.norms_heads:
        queries, keys = layer.query_norm(queries), layer.key_norm(keys)
    queries, keys, values = (
        part.unflatten(-1, (number, layer.head_width))
        for part, number in zip((queries, keys, values), heads, strict=True)
    )
    if layer.norms_heads:
        queries, keys = layer.query_norm(queries), layer.key_norm(keys)
    if layer.rotation is not None:
        cos, sin = (table[columns, None] for table in layer.rotation)  # [N, 1, width]
        queries = rotated(queries, cos[start:], sin[start:], layer.rotary)
        keys = rotated(keys, cos, sin, layer.rotary)
    return queries, keys, values


def _attend(layer: Layer, queries: Tensor, keys: Tensor, values: Tensor, past: Past, mask: Tensor) -> Tensor:
    """Return the concatenated outputs of the heads, [C, S, N, H * W], for keys and values [S, G, C, M + N, W].

    The past is shared: one product per sample and head multiplies its keys, without a copy, by the queries of all
    cells.
    """
    C, S, N, H, W = queries.shape
    G, P = past.keys.shape[1:3]
    own = keys.shape[3]
    queries = queries.unflatten(3, (G, H // G)).permute(1, 3, 0, 4, 2, 5).reshape(S * G, -1, W)
    keys, values = (part.reshape(S * G * C, own, W) for part in (keys, values))
    scores = _scores(layer, queries.reshape(S * G * C, -1, W), keys).view(S, G, C, H // G, N, own)
    if P:
        before = _scores(layer, queries, past.keys.reshape(S * G, P, W))
        scores = torch.cat([before.view(S, G, C, H // G, N, P), scores], dim=-1)
    scores = capped(scores * layer.scale, layer.softcap)
    sinks = None if layer.sinks is None else layer.sinks.view(G, 1, H // G, 1, 1)
    weights = layer.pattern(scores + mask, sinks).to(values.dtype)
    if mask.dim() > 2:  # a token may have nothing to attend to: it gets nothing, where a softmax gives NaN
        weights = weights.masked_fill(mask.isneginf().all(dim=-1, keepdim=True), 0.0)
    mixed = _product(weights[..., P:].reshape(S * G * C, -1, own), values)
    if P:
        shared = weights[..., :P].reshape(S * G, -1, P)
        before_values = past.values.reshape(S * G, P, W)
        mixed = mixed + _product(shared, before_values).view_as(mixed)
    return mixed.view(S, G, C, H // G, N, W).permute(2, 0, 4, 1, 3, 5).reshape(C, S, N, H * W)


def _scores(layer: Layer, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the products of queries, [B, N, W], and keys, [B, M, W], in the dtype of scores, [B, N, M]."""
    return _product(queries.to(layer.scores_dtype), keys.to(layer.scores_dtype).transpose(1, 2))


def _product(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return the products of batches of rows and matrices, [B, N, in], [B, in, out] -> [B, N, out]."""
    return rounded_alike(lambda part: torch.bmm(part, matrices), rows, matrices.numel())


def _mlp(layer: Layer, x: Tensor, tap: Tap, first: int) -> Tensor:
    """Return the MLP's output, [C, S, N, D], for the residual stream before the MLP's norm."""
    given = tap.given("mlp_out") if first == 0 else None
    if given is not None:
        x = x[:, :, 1:]
        if not x.shape[2]:
            return tap.at("mlp_out", given[None, :, None].expand(len(x), -1, -1, -1))
    normed = x if layer.block == "post_norm" else layer.mlp_norm(x)
    if layer.whole_mlp is not None:
        output = layer.whole_mlp(normed, tap)
    else:
        output = layer.down(tap.at("neurons", layer.neurons(normed)))
    output = _added(layer, layer.mlp_after(output))
    return tap.at("mlp_out", _with_first(given, output))
