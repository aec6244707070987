"""Greedy continuations of prompts: no sampling, and no generation settings of the checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import (
    batches,
    check_decoder_only,
    check_length,
    generating_by,
    input_device,
    needs_whole_passes,
    text_config,
    unwrapping,
)
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError
from interpret.finite import MODEL_GIVES_NAN
from interpret.prompts.batches import pad
from interpret.prompts.encoding import token_ids
from interpret.prompts.spelling import decoded


@dataclass(frozen=True)
class Continuation:
    """The continuation of one prompt."""

    ids: list[int]
    """Token ids, without the end-of-text token."""
    p_first: float
    """Probability of the first generated token, even if it is an end-of-text token; NaN if no token was requested."""
    finite: bool = True
    """Whether the continuation ends by itself. False if it ends where a logit is NaN or infinite, so that there is no
    most likely token."""
    first: int | None = None
    """Id of the first generated token, even if it is an end-of-text token; None if there is none."""


@torch.no_grad()
def write_after(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Continuation]:
    """Continue prompts greedily, in one batch, or in several where a prompt's numbers would depend on the others.

    Each token is the most likely one after a pass over all tokens before it: a window of attention is heeded, also
    where the cached decoding of transformers 4.34.0 ignores it. Generation settings of the checkpoint, such as a
    repetition penalty, are not applied.

    Args:
        model: a causal LM.
        prompts: B rows of token ids; this function pads them on the left.
        new_tokens: maximum number of new tokens per prompt.

    Returns:
        One continuation per prompt.

    Raises:
        UnsupportedModelError: if the model has an encoder.
    """
    check_decoder_only(model)
    if not new_tokens:
        return [Continuation([], nan) for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    parts = batches(model, lengths, len(prompts), new_tokens)
    return [one for part in parts for one in _written(model, prompts[part], new_tokens)]


def _written(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Continuation]:
    ends = end_tokens(model)
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=not any(needs_whole_passes(model, len(prompt), new_tokens) for prompt in prompts),
        eos_token_id=ends or None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    batch = pad(prompts, pad_id=0, device=input_device(model))
    with generating_by(model, config):
        output = model.generate(batch.input_ids, attention_mask=batch.attention_mask, generation_config=config)
    texts = output.sequences[:, batch.input_ids.shape[1] :].tolist()
    sound = sound_steps(output.scores)
    first: Tensor = output.scores[0].softmax(-1, dtype=torch.float32).amax(-1)  # [B]
    return [
        greedy_continuation(text, ends, n_sound, p)
        for text, n_sound, p in zip(texts, sound, first.tolist(), strict=True)
    ]


def greedy_continuation(text: list[int], ends: Sequence[int], n_sound: int, p_first: float = nan) -> Continuation:
    """Cut a row of generated tokens at the end of its text, or at the first step without a most likely token."""
    own = _before_end(text, ends)
    n_steps = min(len(own) + 1, len(text))  # the end-of-text token is a step, too
    return Continuation(own[:n_sound], p_first, finite=n_steps <= n_sound, first=next(iter(text[:n_sound]), None))


def sound_steps(scores: Sequence[Tensor]) -> list[int]:
    """Return the number of steps of each row before the first one with a logit that is NaN or infinite.

    Args:
        scores: [B, V] for each step; -inf is the logit of an excluded token.
    """
    sound = torch.stack([(step < torch.inf).all(dim=-1) for step in scores])  # [steps, B]
    return sound.int().cumprod(dim=0).sum(dim=0).tolist()


def _before_end(text: list[int], ends: Sequence[int]) -> list[int]:
    return text[: next((i for i, token in enumerate(text) if token in ends), len(text))]


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the ids of a model's end-of-text tokens."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    end = own if own is not None else text_config(model).eos_token_id
    return end if isinstance(end, list) else [] if end is None else [end]


@unwrapping
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int = 8,
    batch_size: int = 32,
) -> list[str]:
    """Return the greedy continuation of each prompt, up to the end-of-text token.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        prompts: texts, used as they are, without a chat template.
        new_tokens: maximum length of a continuation, in tokens.
        batch_size: number of prompts in a batch.

    Returns:
        One text per prompt, without the prompt.

    Raises:
        InputError: if a prompt is empty, a prompt with its new tokens is too long for the model, or a count is below 1;
            or if logits of the model are NaN or infinite, so that there is no most likely token.
    """
    if new_tokens < 1 or batch_size < 1:
        raise InputError(f"new_tokens is {new_tokens} and batch_size is {batch_size}; both must be at least 1")
    rows = [token_ids(tokenizer, prompt) for prompt in prompts]
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        if not prompt.strip():
            raise InputError(f"prompt {index} is empty")
        check_length(model, f"prompt {index}", len(row), new_tokens)
    texts: list[str] = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            written = write_after(model, rows[start : start + batch_size], new_tokens)
            if broken := [start + place for place, one in enumerate(written) if not one.finite]:
                raise InputError(f"prompt {broken[0]} has no greedy continuation: {MODEL_GIVES_NAN}")
            texts += [decoded(tokenizer, one.ids) for one in written]
    return texts
