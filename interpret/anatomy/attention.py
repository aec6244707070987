"""Settings of a layer's attention: number and width of the heads, scale, soft cap, window and rotary embeddings.

They are read from the configuration if it has them, otherwise from the layer's modules.
"""

from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import Anatomy, text_config
from interpret.anatomy.families import Family, Fused, Rotary

_WINDOW_COUNTS_ITSELF = find_spec("transformers.masking_utils") is not None
"""Whether a window of w tokens includes the token itself; in transformers 4.34.0 it has w tokens in addition to it."""


def head_width(config: Any) -> int:
    """Return the width W of an attention head; in some models it is not D / H."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def key_heads(config: Any) -> int:
    """Return the number G of key-value heads.

    Falcon and GPT-BigCode have one of them if ``multi_query`` is set, also where Falcon's ``num_kv_heads`` is larger.
    """
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    given = (getattr(config, name, None) for name in ("num_key_value_heads", "num_kv_heads", "num_attention_heads"))
    number: int = next(count for count in given if count)
    return number


def attention_scale(anatomy: Anatomy, layer: int) -> float:
    """Return the factor on the products of queries and keys.

    Two GPT-2 settings change it; with torch's own attention (sdpa), transformers 4.57 ignores these settings.
    """
    config: Any = anatomy.trunk.config
    attention = anatomy.layers[layer].get_submodule(anatomy.family.attention)
    own = getattr(attention, "scaling", None) if anatomy.parts.scale is None else anatomy.parts.scale
    if isinstance(own, float):
        return own
    if getattr(config, "_attn_implementation", "eager") == "sdpa":
        return head_width(config) ** -0.5
    scale = head_width(config) ** -0.5 if getattr(config, "scale_attn_weights", True) else 1.0
    return scale / (layer + 1) if getattr(config, "scale_attn_by_inverse_layer_idx", False) else scale


def attention_softcap(family: Family, config: Any) -> float | None:
    """Return the value c of ``Family.softcap``; None without a soft cap, also with torch's own attention (sdpa)."""
    if not family.softcap or getattr(config, "_attn_implementation", "eager") == "sdpa":
        return None
    return getattr(config, family.softcap)


def scores_dtype(config: Any, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model of ``dtype`` keeps the scores of its attention, before the softmax.

    Its own code (eager) rounds them to its dtype. The fused kernels of torch and others keep them in float32, which
    decides what a token attends to where scores are large, as in Qwen 2.5.
    """
    eager = getattr(config, "_attn_implementation", None) in (None, "eager")
    return dtype if eager else torch.promote_types(dtype, torch.float32)


def window_of(config: Any, layer: int) -> int | None:
    """Return how many earlier tokens a layer's tokens attend to; None if the number is not limited."""
    if (kinds := getattr(config, "attention_layers", None)) is not None:  # GPT-Neo; its windows include the token
        return config.window_size - 1 if kinds[layer] == "local" else None
    size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if size is None or (kinds is not None and kinds[layer] != "sliding_attention"):
        return None
    return size - 1 if _WINDOW_COUNTS_ITSELF else size


def forgets_window(model: PreTrainedModel, n_tokens: int) -> bool:
    """Return whether ``generate`` with a KV cache attends beyond the window of attention in a text of ``n_tokens``.

    In transformers 4.34.0, passes over one token after a cache ignore the window of Mistral; passes over whole texts,
    and all passes of later releases, heed it.
    """
    size = getattr(text_config(model), "sliding_window", None)
    return not _WINDOW_COUNTS_ITSELF and size is not None and n_tokens > size


def rotation(anatomy: Anatomy, layer: int, like: Tensor, n_tokens: int) -> tuple[Tensor, Tensor] | None:
    """Return the rotary cosines and sines, each [T, width], of the first ``width`` features of a head, or None.

    Args:
        anatomy: the model's parts.
        layer: index of the layer.
        like: any tensor of the wanted dtype and device.
        n_tokens: length T of the whole sequence; the rotations of some models depend on it.
    """
    kind: Rotary = anatomy.parts.rotary
    attention: Any = anatomy.layers[layer].get_submodule(anatomy.family.attention)
    if not _rotates(anatomy, attention, layer):
        return None
    own = getattr(attention, "rotary_emb", None)
    of_falcon = getattr(attention, "maybe_rotary", None)  # in transformers 4.34.0
    if of_falcon is not None:
        positions = torch.arange(n_tokens, device=like.device)
        cos, sin = of_falcon.cos_sin(n_tokens, 0, positions, like.device, like.dtype)
        return cos, sin
    if kind == "halves" and own is not None and "seq_len" in signature(own.forward).parameters:
        cos, sin = own(like, seq_len=n_tokens)
        return cos[0, 0, :n_tokens].to(like), sin[0, 0, :n_tokens].to(like)
    angles = _angles_of_positions(anatomy.trunk, attention)
    if kind == "pairs" and angles is not None:
        sin, cos = angles[:n_tokens].to(like).repeat_interleave(2, dim=-1).chunk(2, dim=-1)
        return cos, sin
    return _rotation_of_trunk(anatomy.trunk, layer, kind, like, n_tokens) if kind else None


def _angles_of_positions(trunk: Any, attention: Any) -> Tensor | None:
    """Return the sines and cosines of GPT-J and CodeGen, [positions, width]; None for other models.

    Each layer has them, or since transformers 5.24 the trunk.
    """
    holders = (attention, getattr(trunk, "rotary_emb", None))
    return next((found for one in holders if (found := getattr(one, "embed_positions", None)) is not None), None)


def _rotates(anatomy: Anatomy, attention: Any, layer: int) -> bool:
    """Return whether a layer has rotary embeddings, in models of which some layers lack them."""
    only, kinds = anatomy.parts.rotary_in, getattr(anatomy.trunk.config, "layer_types", None) or ()
    return bool(getattr(attention, "use_rope", True)) and (only not in kinds or kinds[layer] == only)


def _rotation_of_trunk(trunk: Any, layer: int, kind: Rotary, like: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Return a layer's rotary cosines and sines for a model whose trunk computes them for all layers."""
    kinds = getattr(trunk.config, "layer_types", None)
    of_layer = kinds[layer] if kinds is not None else ""
    module = _rotary_module(trunk, of_layer)
    known = signature(module.forward).parameters
    if "position_ids" in known:
        asked = (of_layer,) if "layer_type" in known else ()
        turns = module(like, _positions(trunk.config, n_tokens).to(like.device), *asked)
    else:  # Phi-3.5-MoE in transformers 4.57
        turns = module(like, seq_len=n_tokens)
    # [T, width], after axes for rows and positions of an image, which are all equal.
    cos, sin = (_for_each_feature(part.reshape(-1, *part.shape[-2:])[0].to(like), module, kind) for part in turns)
    return cos, sin


def _rotary_module(trunk: Any, of_layer: str) -> Any:
    """Return the module that computes the angles of a type of layers.

    Gemma 3 and OLMo 3 use other angles in layers with a window: from a separate module, or chosen by an argument.
    """
    if hasattr(trunk, "rotary_embs"):  # OLMo 3 in transformers 4.57
        return trunk.rotary_embs[of_layer]
    local = of_layer == "sliding_attention" and hasattr(trunk, "rotary_emb_local")
    return trunk.rotary_emb_local if local else trunk.rotary_emb


def _positions(config: Any, n_tokens: int) -> Tensor:
    """Return the positions of a text, [1, T], or, in models with three for each token of an image, [3, 1, T]."""
    positions = torch.arange(n_tokens)[None]
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return positions.expand(3, 1, -1) if "mrope_section" in settings else positions


def _for_each_feature(turns: Tensor, module: Any, kind: Rotary) -> Tensor:
    """Return cosines or sines, [T, width], in the order of the features, for those that a module computes."""
    half = turns.shape[-1] // 2
    frequencies = getattr(module, "inv_freq", None)
    if frequencies is not None and turns.shape[-1] == frequencies.shape[-1]:  # each angle once, as in GPT-OSS
        return torch.cat([turns, turns], dim=-1) if kind == "halves" else turns.repeat_interleave(2, dim=-1)
    if kind == "pairs" and torch.equal(turns[:, :half], turns[:, half:]):  # the angles of halves, as in GLM
        return turns[:, :half].repeat_interleave(2, dim=-1)
    return turns


def rotated(x: Tensor, cos: Tensor, sin: Tensor, kind: Rotary) -> Tensor:
    """Rotate the first ``width`` features of each head, x [..., N, H, W], by each token's angles, [N, 1, width]."""
    width = cos.shape[-1]
    turning = x[..., :width]
    if kind == "halves":
        left, right = turning.chunk(2, dim=-1)
        across = torch.cat([-right, left], dim=-1)
    else:
        across = torch.stack([-turning[..., 1::2], turning[..., ::2]], dim=-1).flatten(-2)
    turned = turning * cos + across * sin
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)


def unfused(value: Tensor, fused: Fused, n_heads: int, n_key_heads: int) -> tuple[Tensor, ...]:
    """Split the output of one fused projection, [..., (H + 2 G) * W], into q [..., H, W], k and v [..., G, W]."""
    if fused == "blocks":
        counts = (n_heads, n_key_heads, n_key_heads)
        return value.unflatten(-1, (sum(counts), -1)).split(counts, dim=-2)
    if fused == "quarters":
        queries, values, keys = value.unflatten(-1, (4, 3, n_heads // 4, -1)).unbind(dim=-3)
        return queries.flatten(-3, -2), keys.flatten(-3, -2), values.flatten(-3, -2)
    sharing = n_heads // n_key_heads
    queries, keys, values = value.unflatten(-1, (n_key_heads, sharing + 2, -1)).split((sharing, 1, 1), dim=-2)
    return queries.flatten(-3, -2), keys.flatten(-3, -2), values.flatten(-3, -2)


def packed(queries: Tensor, keys: Tensor, values: Tensor, fused: Fused) -> Tensor:
    """Return what one projection gives for queries, [..., H, W], keys and values, [..., G, W]: undo ``unfused``."""
    if fused == "blocks":
        return torch.cat([queries, keys, values], dim=-2).flatten(-2)
    if fused == "quarters":
        parts = [part.unflatten(-2, (4, -1)) for part in (queries, values, keys)]
        return torch.stack(parts, dim=-3).flatten(-4)
    queries = queries.unflatten(-2, (keys.shape[-2], -1))
    return torch.cat([queries, keys[..., None, :], values[..., None, :]], dim=-2).flatten(-3)


def attention_weights(scores: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return how much each token attends to others, for masked scores, [..., T], as softmax in ``dtype``.

    Args:
        scores: the scores of one query each, over T tokens.
        sinks: one more score for each query, [..., 1], whose weight goes to no token (``Parts.sinks``).
        dtype: at least float32.
    """
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=dtype)
    more = sinks.to(scores).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, more], dim=-1), dim=-1, dtype=dtype)[..., :-1]


def attention_sinks(anatomy: Anatomy, block: nn.Module) -> Tensor | None:
    """Return the scores of a layer's sinks, [H], or None."""
    path = anatomy.parts.sinks
    return block.get_parameter(path).detach() if path else None


def numbered(layer: nn.Module) -> list[Any]:
    """Return the modules of a layer that store its index, ``layer_idx``; the scale of GPT-2's attention may use it."""
    return [module for module in layer.modules() if isinstance(getattr(module, "layer_idx", None), int)]


def kind_of_layer(layer: nn.Module) -> str | None:
    """Return a layer's type of attention, as in ``config.layer_types``; None if its modules do not store it."""
    said = (getattr(module, name, None) for module in layer.modules() for name in ("attention_type", "layer_type"))
    return next((kind for kind in said if isinstance(kind, str)), None)
