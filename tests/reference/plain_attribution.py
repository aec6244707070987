"""Helpers for reference attributions by full forward passes: models, texts, and the probability of a token."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret import attribute
from interpret.attribution.result.scores import Attributed
from reference import tiny
from reference.toy_tokenizers import byte_level

KINDS = ["llama", "gpt2", "gptj", "opt", "opt_post_norm", "gpt_neox"]
TOKENIZER = byte_level()
PROMPT = "The Eiffel Tower is in"
TARGET, FOIL = f"{PROMPT} the city", f"{PROMPT} extra cheese"
"""Each has two tokens after the prompt; target and foil differ in both."""


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


assert len(ids_of(TARGET)) == len(ids_of(FOIL)) == len(ids_of(PROMPT)) + 2
N_PROMPT = len(ids_of(PROMPT))


# Cached: tests must not change these models.
wide_model = cache(tiny.wide_model)


def embeddings_of(model: PreTrainedModel, ids: list[int]) -> Tensor:
    table = model.get_input_embeddings()
    # XGLM and BioGPT scale embeddings; in transformers 4.34.0, only those of ids.
    scale = 1.0 if hasattr(table, "embed_scale") else getattr(model.base_model, "embed_scale", 1.0)
    return scale * table(torch.tensor([ids])).detach()


def probability_of(model: PreTrainedModel, embeddings: Tensor, target: int) -> Tensor:
    """Return the probability of a token after each row: [B, T, D] -> [B].

    Without a KV cache, because hooks on layers then see only tensors.
    """
    return model(inputs_embeds=embeddings, use_cache=False).logits[:, -1].softmax(-1)[:, target]


def prefixes(text: str) -> list[tuple[list[int], int]]:
    """Return the steps after the prompt: (token ids before the step, token id of the step)."""
    ids = ids_of(text)
    return [(ids[:column], ids[column]) for column in range(N_PROMPT, len(ids))]


def attributed(model: PreTrainedModel | None = None, targets: str = TARGET, **options: Any) -> Attributed:
    """Return the attribution of a target after the prompt, by default with a Llama model."""
    model = wide_model("llama") if model is None else model
    (one,) = attribute(model, TOKENIZER, PROMPT, targets, **options).sequences
    return one


def last_logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Return the next-token logits after some ids, [V] in float64."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double()
