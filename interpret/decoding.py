"""What a model writes when states are inserted into the slots of an interpretation prompt, and how likely it is.

All interpretations of a template share what they have in common, exactly: the columns before the first slot are
read once, rows whose text has ended leave the batch, and probabilities are taken while decoding. The runs that say
how likely the same text is elsewhere (with nothing inserted, with another state) read all its tokens in one pass.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from interpret.anatomy import chosen_past, input_device, past_bytes, shared_past
from interpret.batches import pad
from interpret.errors import ModelError
from interpret.generation import forward_interpret
from interpret.interpretation_prompt import InterpretationPrompt

LARGEST_BATCH = 128
"""Rows beyond this gain no speed on a CPU."""
MEMORY_SHARE = 8
"""An automatic batch takes at most one part in so many of the device's memory."""
_LOGITS = 2**26
"""Logits held at once where many positions are scored: 256 MiB of float32."""

T = TypeVar("T")


@dataclass(frozen=True)
class Primed:
    """A template the model has read once with nothing inserted: what all its interpretations share."""

    template: InterpretationPrompt
    past: Any
    """Keys and values of its T columns, one row."""
    first: Tensor
    """[1, V] probabilities of the token after it."""


@dataclass(frozen=True)
class Start:
    """Rows that have read a template, ready to write: N rows."""

    past: Any
    """Keys and values of the template's T columns, N rows."""
    first: Tensor
    """[N, V] probabilities of the first token."""
    length: int
    """T."""

    def chosen(self, rows: Sequence[int]) -> "Start":
        """Return a copy of some rows, in the order given."""
        index = torch.tensor(rows, device=self.first.device)
        return Start(chosen_past(self.past, index), self.first[index], self.length)


@dataclass(frozen=True)
class Written:
    """A text the model wrote greedily: G tokens, without the end-of-text token."""

    ids: list[int]
    """[G]."""
    probabilities: list[float]
    """[G] of each token, given those before it."""


@torch.no_grad()
def prime(model: PreTrainedModel, template: InterpretationPrompt) -> Primed:
    """Let the model read a template with nothing inserted."""
    ids = torch.tensor([template.ids], device=input_device(model))  # [1, T]
    output = model.base_model(ids, attention_mask=torch.ones_like(ids), use_cache=True)
    return Primed(template, output.past_key_values, _next_token(model, output[0]))


def start_plain(primed: Primed, rows: int) -> Start:
    """Return a start with nothing inserted, for any number of rows at no cost."""
    length = len(primed.template.ids)
    return Start(shared_past(primed.past, length, rows), primed.first.expand(rows, -1), length)


@torch.no_grad()
def start_inserted(model: PreTrainedModel, primed: Primed, insertions: Sequence[Mapping[Any, Any]]) -> Start:
    """Let the model read a template with insertions, N ``insert_info`` entries, from its first slot on.

    Raises:
        SpecError: if an insertion does not fit.
    """
    template, rows = primed.template, len(insertions)
    ids = torch.tensor([template.ids[template.slots[0] :]] * rows, device=input_device(model))  # [N, T - first slot]
    output = forward_interpret(
        model.base_model,
        ids,
        attention_mask=ids.new_ones(rows, len(template.ids)),
        past_key_values=shared_past(primed.past, template.slots[0], rows),
        use_cache=True,
        insert_info=insertions,
    )
    return Start(output.past_key_values, _next_token(model, output[0]), len(template.ids))


@torch.no_grad()
def write(model: PreTrainedModel, start: Start, new_tokens: int) -> list[Written]:
    """Let the model go on greedily from each row of a start, until its end-of-text token or ``new_tokens`` tokens."""
    ends, past = _ends(model), start.past
    ids: list[list[int]] = [[] for _ in start.first]
    probabilities: list[list[float]] = [[] for _ in start.first]
    active = list(range(len(ids)))  # the row each row of the batch stands for; -1 where its text has ended
    p, token = start.first.max(-1)  # [N]
    for step in range(1, new_tokens + 1):
        for place, (row, one_id, one_p) in enumerate(zip(active, token.tolist(), p.tolist(), strict=True)):
            if row >= 0 and one_id in ends:
                active[place] = -1
            elif row >= 0:
                ids[row].append(one_id)
                probabilities[row].append(one_p)
        going = [place for place, row in enumerate(active) if row >= 0]
        if not going or step == new_tokens:
            break
        if len(going) <= 0.9 * len(active):  # leaving costs a copy of the cache
            chosen = torch.tensor(going, device=token.device)
            past, token, active = chosen_past(past, chosen), token[chosen], [active[place] for place in going]
        output = model.base_model(
            token[:, None],
            attention_mask=token.new_ones(len(token), start.length + step),
            past_key_values=past,
            use_cache=True,
        )
        past = output.past_key_values
        p, token = _next_token(model, output[0]).max(-1)
    return [Written(*row) for row in zip(ids, probabilities, strict=True)]


def write_after(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """Return what the model writes greedily after each prompt, without the end-of-text token.

    A plain greedy search: what a checkpoint's own generation settings add would not be the model's likeliest text.
    """
    if not new_tokens:
        return [[] for _ in prompts]
    ends = _ends(model)
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=0)
    batch = pad(prompts, pad_id=0, device=input_device(model))
    output = model.generate(batch.input_ids, attention_mask=batch.attention_mask, generation_config=config)
    texts = output[:, batch.input_ids.shape[1] :].tolist()
    return [text[: next((i for i, token in enumerate(text) if token in ends), len(text))] for text in texts]


@torch.no_grad()
def score(model: PreTrainedModel, start: Start, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the probability of each token of N given texts, one for each row of a start, in one pass."""
    if not any(texts):
        return [[] for _ in texts]
    longest = max(len(text) for text in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long, device=start.first.device)  # [N, G]
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
    found = torch.zeros(ids.shape, dtype=start.first.dtype, device=ids.device)
    found[:, :1] = start.first.gather(1, ids[:, :1])
    if longest > 1:
        states = model.base_model(
            ids[:, :-1],
            attention_mask=ids.new_ones(len(texts), start.length + longest - 1),
            past_key_values=start.past,
        )[0]  # [N, G - 1, D]
        lengths = torch.tensor([len(text) for text in texts], device=ids.device)
        rows, columns = (torch.arange(1, longest, device=ids.device) < lengths[:, None]).nonzero(as_tuple=True)
        at_once = max(1, _LOGITS // start.first.shape[1])
        for row, column in zip(rows.split(at_once), columns.split(at_once), strict=True):
            p = _softmax(model.get_output_embeddings()(states[row, column]))  # [at once, V]
            found[row, column + 1] = p.gather(1, ids[row, column + 1][:, None]).squeeze(1)
    return [values[: len(text)] for values, text in zip(found.tolist(), texts, strict=True)]


def automatic_batch_size(model: PreTrainedModel, primed: Primed, new_tokens: int) -> int:
    """Choose how many rows to write side by side, from what one takes and from the device's whole memory.

    From the whole and not from what is free just now, so that a run continued later works in the same batches.
    """
    length = len(primed.template.ids)
    # The cache is copied as it grows, and kept from before the first token for scoring under other states.
    row = 3 * past_bytes(primed.past) * (length + new_tokens) // length + 8 * primed.first.numel()
    return max(1, min(LARGEST_BATCH, _memory(model.device) // MEMORY_SHARE // row))


def in_batches(
    rows: Sequence[T], size: int, work: Callable[[Sequence[T]], list[Any]], say: Callable[[str], None]
) -> Iterator[Any]:
    """Yield what ``work`` returns for each row; a batch that does not fit in memory is halved and tried again.

    Raises:
        ModelError: if not even one row fits.
    """
    at = 0
    while at < len(rows):
        results = None
        with suppress(*_OUT_OF_MEMORY):
            results = _unless_too_large(work, rows[at : at + size])
        if results is not None:
            yield from results
            at += size
        elif size == 1:
            raise ModelError("not even one interpretation fits in memory; use a smaller dtype, or fewer new tokens")
        else:
            size = (min(size, len(rows) - at) + 1) // 2
            say(f"a batch did not fit in memory: going on with batches of {size}")


class _TooLarge(Exception):
    """The CPU's allocator refused; torch raises a bare RuntimeError for it."""


_OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError, _TooLarge)


def _unless_too_large(work: Callable[[Sequence[T]], list[Any]], rows: Sequence[T]) -> list[Any]:
    try:
        return work(rows)
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise _TooLarge from None
        raise


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _ends(model: PreTrainedModel) -> list[int]:
    """Return the end-of-text tokens of a model."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    end = own if own is not None else model.config.eos_token_id
    return end if isinstance(end, list) else [] if end is None else [end]


def _next_token(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the probabilities of the token after the last state of each row: [N, T, D] -> [N, V]."""
    return _softmax(model.get_output_embeddings()(states[:, -1]))


def _softmax(logits: Tensor) -> Tensor:
    """Return probabilities over the last dimension, computed in float32 at least."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
