"""What a layer's attention computes with: how many heads, how wide, their scale, window and rotations.

Read from the configuration where it stands there, else from the layer's modules.
"""

from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from interpret.anatomy.anatomy import Anatomy
from interpret.anatomy.families import Family, Rotary

_WINDOW_COUNTS_ITSELF = find_spec("transformers.masking_utils") is not None
"""Whether a window of w tokens holds the token itself; in transformers 4.34.0 it is w tokens beside it."""


def head_width(config: Any) -> int:
    """Return the features W of an attention head; some models have heads that are not D / H wide."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def key_heads(config: Any) -> int:
    """Return how many heads G have keys and values of their own."""
    number: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return number


def attention_scale(attention: nn.Module, config: Any, layer: int) -> float:
    """Return what the products of queries and keys are multiplied by.

    Two settings of GPT-2 change the usual; torch's own attention (sdpa) leaves them away in transformers 4.57.
    """
    own = getattr(attention, "scaling", None)
    if isinstance(own, float):
        return own
    if getattr(config, "_attn_implementation", "eager") == "sdpa":
        return head_width(config) ** -0.5
    scale = head_width(config) ** -0.5 if getattr(config, "scale_attn_weights", True) else 1.0
    return scale / (layer + 1) if getattr(config, "scale_attn_by_inverse_layer_idx", False) else scale


def attention_softcap(family: Family, config: Any) -> float | None:
    """Return the c of ``Family.softcap``; torch's own attention (sdpa) leaves it away."""
    if not family.softcap or getattr(config, "_attn_implementation", "eager") == "sdpa":
        return None
    return getattr(config, family.softcap)


def window_of(config: Any, layer: int) -> int | None:
    """Return how many tokens back a layer's attention sees, where that is limited."""
    size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if size is None or (kinds is not None and kinds[layer] != "sliding_attention"):
        return None
    return size - 1 if _WINDOW_COUNTS_ITSELF else size


def rotation(anatomy: Anatomy, layer: int, like: Tensor, n_tokens: int) -> tuple[Tensor, Tensor] | None:
    """Return cosines and sines, each [T, width], that turn the first ``width`` features of a head; None for none.

    Args:
        anatomy: the model's parts.
        layer: whose.
        like: any tensor of the wanted dtype and device.
        n_tokens: length T of the whole sequence, on which some models' rotations depend.
    """
    kind: Rotary = anatomy.parts.rotary
    attention: Any = anatomy.layers[layer].get_submodule(anatomy.family.attention)
    own = getattr(attention, "rotary_emb", None)
    if kind == "halves" and own is not None and "seq_len" in signature(own.forward).parameters:
        cos, sin = own(like, seq_len=n_tokens)
        return cos[0, 0, :n_tokens].to(like), sin[0, 0, :n_tokens].to(like)
    if kind == "halves":
        return _rotation_of_trunk(anatomy.trunk, layer, like, n_tokens)
    if kind == "pairs":
        sin, cos = attention.embed_positions[:n_tokens].to(like).repeat_interleave(2, dim=-1).chunk(2, dim=-1)
        return cos, sin
    return None


def _rotation_of_trunk(trunk: Any, layer: int, like: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Return a layer's rotations where the trunk computes them for all layers."""
    kinds = getattr(trunk.config, "layer_types", None)
    kind = kinds[layer] if kinds is not None else ""
    # Gemma 3 turns the layers with a window by other angles: by a module of their own, or as an argument says.
    local = kind == "sliding_attention" and hasattr(trunk, "rotary_emb_local")
    module = trunk.rotary_emb_local if local else trunk.rotary_emb
    asked = (kind,) if "layer_type" in signature(module.forward).parameters else ()
    cos, sin = module(like, torch.arange(n_tokens, device=like.device)[None], *asked)
    return cos[0].to(like), sin[0].to(like)


def numbered(layer: nn.Module) -> list[Any]:
    """Return the modules of a layer that know its place, as ``layer_idx``: GPT-2's attention, whose scale may vary."""
    return [module for module in layer.modules() if isinstance(getattr(module, "layer_idx", None), int)]


def kind_of_layer(layer: nn.Module) -> str | None:
    """Return what a layer says its attention is, as in ``config.layer_types``; None where it does not."""
    said = (getattr(module, name, None) for module in layer.modules() for name in ("attention_type", "layer_type"))
    return next((kind for kind in said if isinstance(kind, str)), None)
