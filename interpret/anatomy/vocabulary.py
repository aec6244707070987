"""Embeddings and unembedding of a model, including the scales and soft caps of some families.

Word embeddings are what a model takes as ``inputs_embeds``; scales that it applies to them later are its own business.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import Anatomy
from interpret.anatomy.families import FAMILIES
from interpret.anatomy.releases import embedding_scale


def embedding_table(model: PreTrainedModel) -> Tensor:
    """Return the word embedding of each token, [V, width], detached, with the scale that some models apply to it."""
    module: Any = model.get_input_embeddings()
    weight: Tensor = module.weight.detach()
    scale = getattr(module, "embed_scale", None)
    return _scaled(weight if scale is None else weight * torch.as_tensor(scale).to(weight), embedding_scale(model))


def word_embeddings(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the word embeddings of token ids, [...] -> [..., width]: the ``inputs_embeds`` that stand for them."""
    return _scaled(model.get_input_embeddings()(ids), embedding_scale(model))


def _scaled(values: Tensor, scale: float) -> Tensor:
    return values if scale == 1 else values * scale


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits, [..., V], for inputs of the unembedding, [..., D]."""
    return finished_logits(model, model.get_output_embeddings()(states))


def finished_logits(model: PreTrainedModel, raw: Tensor) -> Tensor:
    """Return the logits for outputs of the unembedding, both [..., V]: scaled, capped and shifted as the model does."""
    logits = capped(_scaled(raw, logit_factor(model)), logit_cap(model))
    bias: Tensor | None = getattr(model, "final_logits_bias", None)  # Marian's
    return logits if bias is None else logits + bias.to(logits.device)


def logit_factor(model: PreTrainedModel) -> float:
    """Return the factor on the output of the unembedding, before the soft cap; 1 in most families."""
    family, config = FAMILIES.get(model.config.model_type), model.config
    if family is None:
        return 1.0
    factor = float(getattr(config, family.logit_scale)) if family.logit_scale else 1.0
    return factor / getattr(config, family.logit_divisor) if family.logit_divisor else factor


def logit_cap(model: PreTrainedModel) -> float | None:
    """Return the value c of ``Family.final_softcap``; None for a model without a soft cap."""
    family = FAMILIES.get(model.config.model_type)
    return getattr(model.config, family.final_softcap) if family is not None and family.final_softcap else None


def capped(values: Tensor, cap: float | None) -> Tensor:
    """Return ``cap * tanh(values / cap)``; without a cap, the values unchanged."""
    return values if cap is None else torch.tanh(values / cap) * cap


def residual_factor(anatomy: Anatomy) -> float:
    """Return the factor on the outputs of attention and MLP when they are added to the residual stream; mostly 1."""
    setting = anatomy.family.residual_scale
    return float(getattr(anatomy.trunk.config, setting)) if setting else 1.0


def final_modules(anatomy: Anatomy) -> list[Any]:
    """Return the modules between the last layer and the unembedding, in order."""
    found = (getattr(anatomy.trunk, name, None) for name in anatomy.family.final)
    return [module for module in found if module is not None]
