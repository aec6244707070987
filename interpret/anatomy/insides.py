"""The modules inside the attention and the MLP of a layer: what each has to compute from what the others compute.

``agreement_layers`` makes these comparisons with one recorded pass of a model, so that a row of the table that names a
wrong module inside a layer is noticed before its heads, neurons, queries or keys are read. The arithmetic is written
down here for two tokens; ``engine.layers`` does the same for runs of any length.
Shapes: B texts, T tokens, D hidden width, H heads, G key-value heads, W width of a head, F neurons.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interpret.anatomy.anatomy import Anatomy
from interpret.anatomy.attention import (
    attention_scale,
    attention_sinks,
    attention_softcap,
    attention_weights,
    key_heads,
    rotated,
    rotation,
    scores_dtype,
    unfused,
    window_of,
)
from interpret.anatomy.families import Family, Parts
from interpret.anatomy.vocabulary import capped

Comparison = tuple[str, str, Tensor, Tensor]
"""What is compared, the fields of ``Parts`` that decide it, its value by these fields, and the value in the model."""


def inputs_inside(family: Family, parts: Parts) -> dict[str, str]:
    """Return the modules whose inputs ``inside`` needs, by the names it gives them."""
    neurons = {"neurons": parts.down} if parts.down else {}
    return {"attn_in": family.attention, "mlp_in": family.mlp_first, "heads": parts.attention_out, **neurons}


def outputs_inside(family: Family, parts: Parts) -> dict[str, str]:
    """Return the modules whose outputs ``inside`` needs, by the names it gives them."""
    projections = {f"projection {number}": path for number, path in enumerate(parts.projections)}
    neurons = {"gate": parts.gate or parts.up, "up": parts.up, "down": parts.down} if parts.down else {}
    return {**projections, **neurons, "attention": family.attention, "mixed": parts.attention_out}


def inside(anatomy: Anatomy, layer: int, block: nn.Module, seen: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """Yield what can be said of a layer without knowing how its heads choose the tokens they attend to.

    Args:
        anatomy: the model's parts.
        layer: index of the layer.
        block: the layer.
        seen: what the layer computed, by the names of ``inputs_inside``, ``outputs_inside`` and ``agreement_pass``.
    """
    parts, family, before = anatomy.parts, anatomy.family, seen["resid_pre"]

    def passed(path: str, value: Tensor) -> Tensor:
        return block.get_submodule(path)(value) if path else value

    normed = anatomy.block != "post_norm"
    entering = passed(parts.attention_norm, before) if normed else before
    yield "the normed input of the attention", "attention_norm", entering, seen["attn_in"]
    if normed and parts.attention_norm:
        norm = block.get_submodule(parts.attention_norm)
        yield "the norm before the attention", "norm_offset", *_by_weight(norm, before, entering, parts.norm_offset)
    middle = (before if anatomy.block == "parallel" else seen["resid_mid"]).reshape(before.shape)
    entering = passed(family.mlp_norm, middle) if normed else middle
    yield "the normed input of the MLP", "mlp_norm, mlp_first", entering, seen["mlp_in"].reshape(before.shape)
    # The first token attends to nothing but itself, except for sinks.
    values = _for_each_head(anatomy, _queries_keys_values(anatomy, seen)[2])[:, 0]
    heads = seen["heads"].unflatten(-1, values.shape[-2:])[:, 0]
    if not parts.sinks:
        yield "the output of the heads at the first token", "projections, attention_out", values, heads
    mixed = seen["mixed"].reshape(before.shape)
    yield "the output of the attention", "attention_out", mixed, seen["attention"]
    added = passed(parts.attention_after, mixed)
    yield "what the attention adds to the residual stream", "attention_after, attention_last", added, seen["attn_out"]
    if not parts.down:
        return
    yield "a neuron", "up, gate, activation, down", _neurons(block, parts, seen), seen["neurons"]
    yield "the output of the MLP", "down, mlp_after, mlp_last", passed(parts.mlp_after, seen["down"]), seen["mlp_out"]


def attending(anatomy: Anatomy, layer: int, block: nn.Module, seen: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """Yield the outputs of a layer's heads, computed from its queries, keys and values; arguments as in ``inside``."""
    config, parts = anatomy.trunk.config, anatomy.parts
    queries, keys, values = _queries_keys_values(anatomy, seen)
    queries, keys = _normed(block, parts.query_norm, queries), _normed(block, parts.key_norm, keys)
    keys, values = _for_each_head(anatomy, keys), _for_each_head(anatomy, values)
    turned = rotation(anatomy, layer, queries, queries.shape[1])
    if turned is not None:
        cos, sin = (table[:, None].to(queries.device) for table in turned)
        queries, keys = (rotated(part, cos, sin, parts.rotary) for part in (queries, keys))
    scale = attention_scale(anatomy, layer)
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))  # [B, H, T, W]
    dtype = scores_dtype(config, queries.dtype)
    scores = capped(queries.to(dtype) @ keys.to(dtype).mT * scale, attention_softcap(anatomy.family, config))
    scores += _hidden(scores, window_of(config, layer))
    sinks = attention_sinks(anatomy, block)
    sinks = None if sinks is None else sinks[:, None, None]
    weights = attention_weights(scores, sinks, torch.float32).to(values)
    mixed = (weights @ values).transpose(1, 2).flatten(-2)
    yield "the output of the heads", "projections, query_norm, key_norm, rotary", mixed, seen["heads"]


def _hidden(scores: Tensor, window: int | None) -> Tensor:
    """Return what hides tokens from others, [T, T]: minus infinity for later ones and those before the window."""
    everywhere = scores.new_full(scores.shape[-2:], -torch.inf)
    hidden = everywhere.triu(1)
    return hidden if window is None else hidden + everywhere.tril(-window - 1)


def _queries_keys_values(anatomy: Anatomy, seen: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return queries, [B, T, H, W], and keys and values, [B, T, G, W]."""
    fused, counts = anatomy.parts.fused, _counts(anatomy)
    if fused:
        return unfused(seen["projection 0"], fused, *counts[:2])
    given = (seen[f"projection {number}"] for number in range(3))
    return tuple(value.unflatten(-1, (count, -1)) for value, count in zip(given, counts, strict=True))


def _counts(anatomy: Anatomy) -> tuple[int, int, int]:
    """Return H, G and G."""
    config = anatomy.trunk.config
    return config.num_attention_heads, key_heads(config), key_heads(config)


def _for_each_head(anatomy: Anatomy, value: Tensor) -> Tensor:
    """Repeat what key-value heads computed for the heads that share them: [B, T, G, W] -> [B, T, H, W]."""
    n_heads, n_key_heads, _ = _counts(anatomy)
    return value.repeat_interleave(n_heads // n_key_heads, dim=-2)


def _normed(block: nn.Module, path: str, value: Tensor) -> Tensor:
    """Apply the norm of queries or keys, [B, T, heads, W], if the model has it: to each head, or to all together."""
    if not path:
        return value
    try:
        norm = block.get_submodule(path)
    except AttributeError:
        return value
    by_head = norm.get_parameter("weight").shape[-1] == value.shape[-1]
    return norm(value) if by_head else norm(value.flatten(-2)).view_as(value)


def _by_weight(norm: Any, before: Tensor, after: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Return what a norm gives by its weight and the family's offset, up to a factor per token, and what it gives."""
    bias, weight = getattr(norm, "bias", None), getattr(norm, "weight", None)
    after = after if bias is None else after - bias
    if weight is None or isinstance(norm, nn.LayerNorm):
        return after, after  # no weight, or one that is known to have no offset
    centred = before - before.mean(dim=-1, keepdim=True) if centres(norm) else before
    expected = centred * (weight + offset)
    return expected * (after.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)), after


def centres(norm: nn.Module) -> bool:
    """Return whether a norm subtracts the mean."""
    names = ("CohereLayerNorm", "Cohere2LayerNorm", "OlmoLayerNorm")  # T5's LayerNorm does not
    return isinstance(norm, nn.LayerNorm) or type(norm).__name__ in names


def norm_epsilon(norm: nn.Module) -> float | None:
    """Return what a norm adds to the variance; None if it is unknown."""
    if type(norm).__name__ == "OlmoLayerNorm":
        return 1e-5  # a constant in its code
    found: float | None = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    return found


def norm_weight(norm: nn.Module, like: Tensor) -> Tensor:
    """Return the factor on each normed feature, [D], float64 on the CPU: the norm's weight and what it adds to it.

    Some norms multiply by ``1 + weight`` (Gemma). What a norm adds is read from its output for one state, rounded.

    Args:
        norm: the norm, whose ``norm_epsilon`` is known.
        like: states of the dtype that it takes, [..., D].
    """
    held: Tensor | None = getattr(norm, "weight", None)
    if held is None:
        return torch.ones(like.shape[-1], dtype=torch.float64)
    state = torch.ones_like(like, device=held.device).flatten(0, -2)[:1]  # [1, D]
    state[:, 1::2] = -1
    spread = state.double() - state.double().mean() if centres(norm) else state.double()
    normed = spread / (spread.pow(2).mean() + (norm_epsilon(norm) or 0.0)).sqrt()
    bias: Tensor | None = getattr(norm, "bias", None)
    written = norm(state) if bias is None else norm(state) - bias
    factors = written.double() / normed
    return (held.double() + (factors - held.double()).nanmedian().round(decimals=2)).detach().cpu()


def _neurons(block: nn.Module, parts: Parts, seen: Mapping[str, Tensor]) -> Tensor:
    activation: Any = block
    for name in parts.activation.split("."):  # in OPT this is a plain function, not a module
        activation = getattr(activation, name)
    if not parts.gate:
        return activation(seen["up"])
    gate, up = seen["up"].chunk(2, dim=-1) if parts.gate == parts.up else (seen["gate"], seen["up"])
    return activation(gate) * up
