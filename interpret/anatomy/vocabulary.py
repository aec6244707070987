"""Embeddings and unembedding of a model, including the scales and soft caps of some families."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy.families import FAMILIES


def embedding_table(model: PreTrainedModel) -> Tensor:
    """Return the embedding of each token, [V, width], detached, with the scale that some models apply to it."""
    module: Any = model.get_input_embeddings()
    weight: Tensor = module.weight.detach()
    scale = getattr(module, "embed_scale", None)
    return weight if scale is None else weight * torch.as_tensor(scale).to(weight)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits, [..., V], for inputs of the unembedding, [..., D]."""
    return capped(model.get_output_embeddings()(states), logit_cap(model))


def logit_cap(model: PreTrainedModel) -> float | None:
    """Return the value c of ``Family.final_softcap``; None for a model without a soft cap."""
    family = FAMILIES.get(model.config.model_type)
    return getattr(model.config, family.final_softcap) if family is not None and family.final_softcap else None


def capped(values: Tensor, cap: float | None) -> Tensor:
    """Return ``cap * tanh(values / cap)``; without a cap, the values unchanged."""
    return values if cap is None else torch.tanh(values / cap) * cap
