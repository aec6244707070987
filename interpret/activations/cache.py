"""Cache of activations of many prompts, by name: in memory, or in a folder whose tensors are read on access."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import LOGITS, record, select_names
from interpret.activations.cache_files import Folder, load, start
from interpret.anatomy import base_of, batches, check_length, input_device, unwrapping
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError, UnsupportedModelError, unknown
from interpret.prompts.batches import Batch, pad
from interpret.prompts.encoding import token_ids

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """Activations of B prompts by name: ``cache["mlp_out.3"]`` is a tensor; iterating over a cache yields the names.

    Every tensor is [B, T, ...], on the CPU, in the model's dtype; T is the length of the longest prompt. Token p of a
    prompt is in column p; columns after its last token are 0. The table in ``interpret.activations._record`` lists the
    other dimensions. A cache opened from a folder reads a tensor from disk at every access.
    """

    token_ids: Rows
    """Token ids of each prompt, without padding."""
    names: tuple[str, ...]
    """Names of the activations it holds, in the order of computation."""
    _read: Callable[[str], Tensor] = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        """Return an activation, [B, T, ...]; raises InputError if the cache does not hold it."""
        if name not in self.names:
            raise InputError(unknown("activation", name, self.names))
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        """Tell whether the cache holds an activation."""
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.names)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.names)

    @property
    def mask(self) -> Tensor:
        """[B, T] bool: True where a column holds a token."""
        lengths = torch.tensor([len(row) for row in self.token_ids])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def of(self, name: str, prompt: int) -> Tensor:
        """Return an activation of one prompt without padding, [number of its tokens, ...].

        Raises:
            InputError: if the cache does not hold the name, or has no such prompt.
        """
        if not 0 <= prompt < len(self.token_ids):
            raise InputError(f"prompt {prompt} does not exist; this cache has prompts 0 to {len(self.token_ids) - 1}")
        return self[name][prompt, : len(self.token_ids[prompt])]

    def save(self, folder: str | Path) -> None:
        """Write the cache to a new or empty folder, as safetensors.

        Raises:
            RunError: if the folder is not empty.
        """
        writer = start(folder, self.token_ids, self.names)
        writer.write({name: self[name] for name in self.names})
        writer.finish()

    @staticmethod
    def load(folder: str | Path) -> "ActivationCache":
        """Open a cache that was written to a folder; its tensors are read on access.

        Raises:
            RunError: if the folder holds no finished cache.
        """
        token_ids, names, read = load(folder)
        return ActivationCache(token_ids, names, read)


@unwrapping
def activation_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    names: str | Sequence[str] = "*",
    *,
    batch_size: int = 8,
    to: str | Path | None = None,
) -> ActivationCache:
    """Run a model once over prompts and cache the chosen activations.

    Prompts are padded on the right, so no token attends to padding: the activations of a prompt equal those of the
    prompt alone, up to rounding. The unembedding runs only if ``logits`` are requested. Dropout is off, also for a
    model in training mode.

    Args:
        model: a causal LM of a supported family, or its base model, which has no ``logits``.
        tokenizer: the model's tokenizer; it adds its special tokens. None if all prompts are token ids.
        prompts: B texts, or B rows of token ids.
        names: activations to keep: names or patterns such as ``["resid_post.*", "q.3"]``, see the table in
            ``interpret.activations._record``.
        batch_size: number of prompts per forward pass.
        to: a new or empty folder to write to, batch by batch, instead of keeping the tensors in memory.

    Returns:
        The cache.

    Raises:
        InputError: if a name does not exist, there are no prompts, a prompt has no tokens or more than the model
            reads, a text comes without a tokenizer, or the batch size is below 1.
        RunError: if the folder is not empty.
        UnsupportedModelError: if the model's family is unknown, or the model does not call a module that is needed.

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
        for some in batches(model, [len(row) for row in rows], batch_size):
            batch = pad(rows[some], 0, side="right", device=input_device(model))
            store.write(_run(model, batch, wanted, seen))
    return ActivationCache(rows, wanted, store.finish())


def token_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str] | Sequence[Sequence[int]],
) -> Rows:
    """Return the token ids of prompts given as texts or as token ids.

    Raises:
        InputError: if there are no prompts, a prompt has no tokens or more than the model reads, or a text comes
            without a tokenizer.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise InputError("prompts: give a list of at least one text, or of rows of token ids")
    rows = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str) and tokenizer is None:
            raise InputError(f"prompts[{index}] is a text: give the tokenizer, or token ids")
        ids: Sequence[Any] = (
            token_ids(tokenizer, prompt) if tokenizer is not None and isinstance(prompt, str) else prompt
        )
        rows.append(tuple(int(token) for token in ids))
        if not rows[-1]:
            raise InputError(f"prompts[{index}] has no tokens: every prompt needs at least one")
        check_length(model, f"prompts[{index}]", len(rows[-1]))
    return tuple(rows)


def _run(model: PreTrainedModel, batch: Batch, names: Sequence[str], seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run one batch and return the named activations, with 0 at padding."""
    seen.clear()
    runner = model if LOGITS in names else base_of(model)
    with torch.no_grad(), evaluating(model):
        output = runner(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    if LOGITS in names:
        seen[LOGITS] = output.logits
    missing = [name for name in names if name not in seen]
    if missing:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not call the module that computes {missing[0]}; "
            "was it loaded with pretraining_tp above 1?"
        )
    return {name: _unpadded(seen[name], batch.attention_mask) for name in names}


def _unpadded(value: Tensor, mask: Tensor) -> Tensor:
    """Move [b, t, ...] to the CPU and set padding to 0."""
    kept = mask.to(value.device)[(..., *[None] * (value.dim() - 2))]
    return value.masked_fill(kept == 0, 0).cpu()


class _Memory:
    """Collects the tensors of all batches in memory."""

    def __init__(self, rows: Rows) -> None:
        self._shape = (len(rows), max(len(row) for row in rows))
        self._whole: dict[str, Tensor] = {}
        self._next = 0

    def write(self, batch: dict[str, Tensor]) -> None:
        """Store the tensors [b, t, ...] of the next b prompts."""
        first = self._next
        for name, value in batch.items():
            if name not in self._whole:
                self._whole[name] = value.new_zeros(*self._shape, *value.shape[2:])
            self._whole[name][first : first + value.shape[0], : value.shape[1]] = value
            self._next = first + len(value)

    def finish(self) -> Callable[[str], Tensor]:
        """Return a function that reads a tensor by its name."""
        return self._whole.__getitem__
