"""The two ends of a model: its embeddings and its head, with what some families do there beside a product."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy.families import FAMILIES


def embedding_table(model: PreTrainedModel) -> Tensor:
    """Return the embedding of each token, [V, width], without a graph; some models scale their weights."""
    module: Any = model.get_input_embeddings()
    weight: Tensor = module.weight.detach()
    scale = getattr(module, "embed_scale", None)
    return weight if scale is None else weight * torch.as_tensor(scale).to(weight)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits, [..., V], for what the head reads, [..., D]."""
    return capped(model.get_output_embeddings()(states), logit_cap(model))


def logit_cap(model: PreTrainedModel) -> float | None:
    """Return the c of ``Family.final_softcap``; None for a model without."""
    family = FAMILIES.get(model.config.model_type)
    return getattr(model.config, family.final_softcap) if family is not None and family.final_softcap else None


def capped(values: Tensor, cap: float | None) -> Tensor:
    """Return ``cap * tanh(values / cap)``; without a cap the values themselves."""
    return values if cap is None else torch.tanh(values / cap) * cap
