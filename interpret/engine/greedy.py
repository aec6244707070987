"""What a model writes after prompts, token by token the likeliest; no sampling, and no settings of the checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import generating_by, input_device, longest_text
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError
from interpret.prompts.batches import pad


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after one prompt."""

    ids: list[int]
    """[G] tokens, without the end-of-text token."""
    p_first: float
    """Probability of the first token the model wrote, an end-of-text token too; NaN if it was asked for none."""


@torch.no_grad()
def write_after(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Continuation]:
    """Let a model continue prompts greedily, side by side.

    A plain greedy search: generation settings of the checkpoint, such as a repetition penalty, are not applied.

    Args:
        model: a causal LM.
        prompts: B rows of token ids; they are padded on the left.
        new_tokens: the most tokens written after each.
    """
    if not new_tokens:
        return [Continuation([], nan) for _ in prompts]
    ends = end_tokens(model)
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    batch = pad(prompts, pad_id=0, device=input_device(model))
    with generating_by(model, config):
        output = model.generate(batch.input_ids, attention_mask=batch.attention_mask, generation_config=config)
    texts = output.sequences[:, batch.input_ids.shape[1] :].tolist()
    first: Tensor = output.scores[0].softmax(-1, dtype=torch.float32).amax(-1)  # [B]
    return [Continuation(_before_end(text, ends), p) for text, p in zip(texts, first.tolist(), strict=True)]


def _before_end(text: list[int], ends: Sequence[int]) -> list[int]:
    return text[: next((i for i, token in enumerate(text) if token in ends), len(text))]


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the ids of a model's end-of-text tokens."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    end = own if own is not None else model.config.eos_token_id
    return end if isinstance(end, list) else [] if end is None else [end]


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int = 8,
    batch_size: int = 32,
) -> list[str]:
    """Return how the model continues each prompt, greedily, up to the end-of-text token.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        prompts: texts, read as they are, without a chat template.
        new_tokens: longest continuation, in tokens.
        batch_size: prompts continued side by side.

    Raises:
        InputError: for an empty prompt, one that is too long for the model with what follows it, or a count below 1.
    """
    if new_tokens < 1 or batch_size < 1:
        raise InputError(f"new_tokens is {new_tokens} and batch_size {batch_size}: both have to be at least 1")
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    longest = longest_text(model)
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        if not prompt.strip():
            raise InputError(f"prompt {index} is empty")
        if len(row) + new_tokens > longest:
            raise InputError(f"prompt {index} has {len(row)} tokens; with {new_tokens} new ones it exceeds {longest}")
    texts: list[str] = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            written = write_after(model, rows[start : start + batch_size], new_tokens)
            texts += [tokenizer.decode(one.ids, clean_up_tokenization_spaces=False) for one in written]
    return texts
