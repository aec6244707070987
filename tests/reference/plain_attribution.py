"""Attributions the plain way: the whole model, one pass a token, one backward a score; and the models they run on."""

from functools import cache

import torch
from reference import tiny
from reference.toy_tokenizers import byte_level
from torch import Tensor
from transformers import PreTrainedModel

KINDS = ["llama", "gpt2", "gptj", "opt", "opt_post_norm", "gpt_neox"]
TOKENIZER = byte_level()
PROMPT = "The Eiffel Tower is in"
TARGET, FOIL = f"{PROMPT} the city", f"{PROMPT} extra cheese"
"""Two tokens after the prompt each, which differ in both."""


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


assert len(ids_of(TARGET)) == len(ids_of(FOIL)) == len(ids_of(PROMPT)) + 2
N_PROMPT = len(ids_of(PROMPT))


# Built once: no test may change them.
wide_model = cache(tiny.wide_model)


def embeddings_of(model: PreTrainedModel, ids: list[int]) -> Tensor:
    return model.get_input_embeddings()(torch.tensor([ids])).detach()


def probability_of(model: PreTrainedModel, embeddings: Tensor, target: int) -> Tensor:
    """[B, T, D] -> [B], by the model's own forward pass; with a cache, layers give and take what is no tensor."""
    return model(inputs_embeds=embeddings, use_cache=False).logits[:, -1].softmax(-1)[:, target]


def prefixes(text: str) -> list[tuple[list[int], int]]:
    """The steps after the prompt: what is read before, and the token."""
    ids = ids_of(text)
    return [(ids[:column], ids[column]) for column in range(N_PROMPT, len(ids))]
