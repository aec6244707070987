"""Embeddings and unembedding of a model, including the scales and soft caps of some families.

Word embeddings are what a model takes as ``inputs_embeds``; scales that it applies to them later are its own business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import Anatomy, text_config
from interpret.anatomy.calls import input_device
from interpret.anatomy.encoder_decoders import unembedding_scale
from interpret.anatomy.families import FAMILIES
from interpret.anatomy.releases import embedding_scale


def embedding_table(model: PreTrainedModel) -> Tensor:
    """Return the word embedding of each token, [V, width], detached, with scales and adapters that apply to it."""
    n_tokens, _ = _size(model.get_input_embeddings())
    return word_embeddings(model, torch.arange(n_tokens, device=input_device(model))).detach()


def unembedding_size(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number V of logits, and the width of the states that are unembedded."""
    return _size(model.get_output_embeddings())


def _size(module: nn.Module) -> tuple[int, int]:
    """Return the shape of a module's matrix, which an adapter may hold inside."""
    weights: Iterator[Tensor | None] = (getattr(part, "weight", None) for part in module.modules())
    n_tokens, width = next(weight.shape for weight in weights if weight is not None and weight.dim() == 2)
    return n_tokens, width


def word_embeddings(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the word embeddings of token ids, [...] -> [..., width]: the ``inputs_embeds`` that stand for them."""
    return _scaled(model.get_input_embeddings()(ids), embedding_scale(model))


def _scaled(values: Tensor, scale: float) -> Tensor:
    return values if scale == 1 else values * scale


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits, [..., V], for final hidden states, [..., D]."""
    scaled = _scaled(states, unembedding_scale(model))
    return finished_logits(model, model.get_output_embeddings()(scaled))


def finished_logits(model: PreTrainedModel, raw: Tensor) -> Tensor:
    """Return the logits for outputs of the unembedding, both [..., V]: scaled, capped and shifted as the model does."""
    logits = capped(_scaled(raw, logit_factor(model)), logit_cap(model))
    bias: Tensor | None = getattr(model, "final_logits_bias", None)  # of BART and its relatives
    return logits if bias is None else logits + bias.to(logits.device)


@dataclass(frozen=True)
class _LogitSettings:
    """Names of settings as in ``Family``, with the values that families without a row give them most often."""

    logit_scale: str = "logit_scale"
    logit_divisor: str = "logits_scaling"
    final_softcap: str = "final_logit_softcapping"


def _setting(model: PreTrainedModel, name: str) -> float | None:
    """Return a setting of the logits; None if the model does not have it.

    For families without a row, whose predictions can be attributed, the usual names are tried. ``agreement`` compares
    the result with the model's own logits.
    """
    family = FAMILIES.get(text_config(model).model_type)
    setting = getattr(family or _LogitSettings(), name)
    return getattr(text_config(model), setting, None) if family is None or setting else None


def logit_factor(model: PreTrainedModel) -> float:
    """Return the factor on the output of the unembedding, before the soft cap; 1 in most families."""
    scale, divisor = _setting(model, "logit_scale"), _setting(model, "logit_divisor")
    return (1.0 if scale is None else scale) / (1.0 if divisor is None else divisor)


def logit_cap(model: PreTrainedModel) -> float | None:
    """Return the value c of ``Family.final_softcap``; None for a model without a soft cap."""
    return _setting(model, "final_softcap")


def capped(values: Tensor, cap: float | None) -> Tensor:
    """Return ``cap * tanh(values / cap)``; without a cap, the values unchanged."""
    return values if cap is None else torch.tanh(values / cap) * cap


def residual_factor(anatomy: Anatomy) -> float:
    """Return the factor on the outputs of attention and MLP when they are added to the residual stream; mostly 1."""
    setting = anatomy.family.residual_scale
    factor: float | None = getattr(anatomy.trunk.config, setting, None) if setting else None
    return 1.0 if factor is None else factor


def final_modules(anatomy: Anatomy) -> list[Any]:
    """Return the modules between the last layer and the unembedding, in order."""
    found = (getattr(anatomy.trunk, name, None) for name in anatomy.family.final)
    return [module for module in found if module is not None]
