"""Activations of whole batches, kept by name: in memory, or in a folder that is read piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import LOGITS, record, select_names
from interpret.activations.cache_files import Folder, load, start
from interpret.anatomy import base_of, input_device, longest_text
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError, UnsupportedModelError, unknown
from interpret.prompts.batches import Batch, pad

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """Activations of B prompts. ``cache["mlp_out.3"]`` is a tensor; ``name in cache``, ``len`` and loops go by name.

    Every tensor is [B, T, ...] on the CPU in the model's dtype, T being the length of the longest prompt: token p of
    a prompt stands in column p, and columns after its last token are 0. The last dimensions are those of the table
    in ``interpret.activations.record``. A cache of a folder reads a tensor each time it is asked for.
    """

    token_ids: Rows
    """The tokens of each prompt."""
    names: tuple[str, ...]
    """What is held, in the order in which the model computes it."""
    _read: Callable[[str], Tensor] = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        """Return an activation, [B, T, ...]; InputError for a name that is not held."""
        if name not in self.names:
            raise InputError(unknown("activation", name, self.names))
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        """Tell whether an activation is held."""
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.names)

    def __len__(self) -> int:
        """Count the names."""
        return len(self.names)

    @property
    def mask(self) -> Tensor:
        """[B, T] bool: which columns hold a token."""
        lengths = torch.tensor([len(row) for row in self.token_ids])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def of(self, name: str, prompt: int) -> Tensor:
        """Return an activation of one prompt without its padding, [its tokens, ...].

        Raises:
            InputError: if the cache does not hold the name, or has no such prompt.
        """
        if not 0 <= prompt < len(self.token_ids):
            raise InputError(f"prompt {prompt} does not exist; this cache has prompts 0 to {len(self.token_ids) - 1}")
        return self[name][prompt, : len(self.token_ids[prompt])]

    def save(self, folder: str | Path) -> None:
        """Write the cache into a new or empty folder, as safetensors.

        Raises:
            RunError: if there is something in the folder.
        """
        writer = start(folder, self.token_ids, self.names)
        writer.write({name: self[name] for name in self.names})
        writer.finish()

    @staticmethod
    def load(folder: str | Path) -> "ActivationCache":
        """Open a cache that was written into a folder; its tensors are read when they are asked for.

        Raises:
            RunError: if the folder holds no finished cache.
        """
        token_ids, names, read = load(folder)
        return ActivationCache(token_ids, names, read)


def activation_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    names: str | Sequence[str] = "*",
    *,
    batch_size: int = 8,
    to: str | Path | None = None,
) -> ActivationCache:
    """Run a model once over some prompts, and keep the activations that are named.

    Prompts are padded on the right, where no token sees the padding: a prompt's activations are those it has alone,
    to rounding. The head is run only where ``logits`` are asked for. The model may be in training mode; it is run
    without dropout.

    Args:
        model: a causal LM of a known family, or its base model, which has no ``logits``.
        tokenizer: the model's own; it adds its special tokens. None where all prompts are token ids.
        prompts: B texts, or B rows of token ids.
        names: what to keep: names or patterns such as ``["resid_post.*", "q.3"]``; the table of names stands in
            ``interpret.activations.record``. Only what is named is kept.
        batch_size: prompts that run side by side.
        to: a new or empty folder to write to, batch by batch, instead of keeping the tensors in memory.

    Raises:
        InputError: for a name that does not exist, no prompts, a prompt without tokens or longer than the model
            reads, texts without a tokenizer, or a batch size below 1.
        RunError: if there is something in the folder.
        UnsupportedModelError: for a model of no known family, or one that does not call the parts asked for.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> cache = activation_cache(model, None, [[3, 1, 4], [1, 5]], ["heads.1", "logits"])
    >>> {name: tuple(cache[name].shape) for name in cache}
    {'heads.1': (2, 3, 2, 4), 'logits': (2, 3, 50)}
    """
    wanted = select_names(model, names)
    rows = token_rows(model, tokenizer, prompts)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give at least 1")
    store: _Memory | Folder = _Memory(rows) if to is None else start(to, rows, wanted)
    with record(model, [name for name in wanted if name != LOGITS]) as seen:
        for first in range(0, len(rows), batch_size):
            batch = pad(rows[first : first + batch_size], 0, side="right", device=input_device(model))
            store.write(_run(model, batch, wanted, seen))
    return ActivationCache(rows, wanted, store.finish())


def token_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str] | Sequence[Sequence[int]],
) -> Rows:
    """Return the token ids of prompts that are texts or token ids.

    Raises:
        InputError: for no prompts, one without tokens or longer than the model reads, or texts without a tokenizer.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise InputError("prompts: give a list of at least one text, or of rows of token ids")
    rows, longest = [], longest_text(model)
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str) and tokenizer is None:
            raise InputError(f"prompts[{index}] is a text: give the tokenizer, or token ids")
        ids: Sequence[Any] = (
            tokenizer(prompt).input_ids if tokenizer is not None and isinstance(prompt, str) else prompt
        )
        rows.append(tuple(int(token) for token in ids))
        if not 0 < len(rows[-1]) <= longest:
            raise InputError(f"prompts[{index}] has {len(rows[-1])} tokens; this model reads 1 to {longest}")
    return tuple(rows)


def _run(model: PreTrainedModel, batch: Batch, names: Sequence[str], seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run one batch, and return what was asked for, 0 at padding."""
    seen.clear()
    runner = model if LOGITS in names else base_of(model)
    with torch.no_grad(), evaluating(model):
        output = runner(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    if LOGITS in names:
        seen[LOGITS] = output.logits
    missing = [name for name in names if name not in seen]
    if missing:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not call the part that computes {missing[0]}; "
            "was it loaded with pretraining_tp above 1?"
        )
    return {name: _unpadded(seen[name], batch.attention_mask) for name in names}


def _unpadded(value: Tensor, mask: Tensor) -> Tensor:
    """Return [b, t, ...] on the CPU, with zeros where there is no token."""
    kept = mask.to(value.device)[(..., *[None] * (value.dim() - 2))]
    return value.masked_fill(kept == 0, 0).cpu()


class _Memory:
    """Collects the tensors of batches into tensors of all prompts."""

    def __init__(self, rows: Rows) -> None:
        self._shape = (len(rows), max(len(row) for row in rows))
        self._whole: dict[str, Tensor] = {}
        self._next = 0

    def write(self, batch: dict[str, Tensor]) -> None:
        """Take the tensors [b, t, ...] of the next b prompts."""
        first = self._next
        for name, value in batch.items():
            if name not in self._whole:
                self._whole[name] = value.new_zeros(*self._shape, *value.shape[2:])
            self._whole[name][first : first + value.shape[0], : value.shape[1]] = value
            self._next = first + len(value)

    def finish(self) -> Callable[[str], Tensor]:
        """Return what reads a tensor by its name."""
        return self._whole.__getitem__
