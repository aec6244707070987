"""Attributed values of texts with masked tokens, each computed only from its first masked token on.

Before the first masked token, the states of a causal model are those of the unmasked text. So the unmasked text is run
once and its KV cache is kept; of each masked text only the suffix from the first masked token on is computed. Suffixes
are packed into one row; each attends to its prefix in the KV cache and to itself. States do not depend on later
tokens, so one pass over a masked text serves all steps: each reads the state at the last token of its own text. Where
the length of a text decides about its rotary embeddings (longrope), steps on both sides of the limit are separated.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from interpret.anatomy import batches, word_embeddings
from interpret.attribution.steps.fitting import in_parts
from interpret.attribution.steps.step import Step
from interpret.device import index_on, sent
from interpret.engine.layers import Context, Past, Untapped, run_layer
from interpret.engine.prefix_tree import LARGEST_TREE
from interpret.engine.recording import record_run
from interpret.engine.trunk import Trunk, check_trunk, trunk_of
from interpret.errors import UnsupportedModelError

HEAD_ROWS = 64
"""Maximum number of states unembedded at once, because logits over the vocabulary are large."""


@dataclass(frozen=True)
class _Read:
    """A model and its KV cache of the unmasked text of the last step, T tokens."""

    trunk: Trunk
    past: list[Past]
    """Keys and values of each layer."""


@dataclass(frozen=True)
class _Masked:
    """R masked texts and their states."""

    embeddings: Tensor
    """[R, T, D]."""
    begins: list[int]
    """[R], the first column that was computed of each text."""
    states: Tensor
    """[M, D], the computed states of all texts, one text after the other."""
    firsts: list[int]
    """[R], the index in ``states`` of each text's column 0, or the index it would have if it had been computed."""
    logits: Callable[[Tensor], Tensor]
    """States, [P, D] -> logits, [P, V]."""


@torch.no_grad()
def masked_values(steps: Sequence[Step], masked: Tensor, replacement: Tensor) -> Tensor:
    """Return the attributed values of G steps for N texts with masked tokens.

    Args:
        steps: steps of one text, in order; the last step's text has T tokens.
        masked: [N, T] bool on the CPU, which tokens are masked. A step ignores tokens after its own text.
        replacement: [1, T, D], the embeddings of masked tokens.

    Returns:
        [N, G], float64 on the CPU.
    """
    last, parts = steps[-1], []
    sides = batches(last.model, [len(step.ids) for step in steps], len(steps))
    for some in (steps[side] for side in sides):
        n = len(some[-1].ids)

        def embedded(rows: Tensor, some: Sequence[Step] = some, n: int = n) -> Tensor:
            return torch.where(rows[:, :, None], replacement[:, :n], some[-1].embeddings)

        parts.append(_values_of(some, masked[:, :n], torch.zeros(n, dtype=torch.bool), embedded))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def replaced_values(step: Step, ids: Tensor) -> Tensor:
    """Return the attributed value of a step for N texts with other tokens, [N, T] ids on the CPU -> [N] float64."""
    own = torch.tensor(step.ids)
    return _values_of([step], ids, own, partial(word_embeddings, step.model))[:, 0]


def _values_of(steps: Sequence[Step], texts: Tensor, itself: Tensor, embedded: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the values of steps that one pass over the last step's text serves, [N, G].

    Args:
        steps: the steps.
        texts: [N, T], a code for each token of N texts: its id, or whether it is masked.
        itself: [T], the codes of the last step's text.
        embedded: some of the texts -> their embeddings, [R, T, D].
    """
    last = steps[-1]
    lengths = torch.tensor([len(step.ids) for step in steps])
    # Equal rows are computed once. If no token of a step's text is replaced, its value is that of the text itself.
    texts, place = torch.cat([itself[None], texts]).unique(dim=0, return_inverse=True)
    different = texts != itself
    read = _read(last)
    begins = torch.where(different.any(1), different.int().argmax(1), lengths[0] - 1)
    if read is None:
        begins = torch.zeros_like(begins)
    texts = sent(texts, last.embeddings.device)
    values = torch.empty(len(texts), len(steps), dtype=torch.float64)
    names = [f"{len(last.ids)} tokens, masked text {row}" for row in range(len(texts))]
    pending = []
    for row, name in enumerate(names):
        if (stored := last.stored.get(name)) is None:
            pending.append(row)
        else:
            values[row] = torch.tensor(stored, dtype=torch.float64)

    def work(rows: Tensor) -> Tensor:
        embeddings = embedded(texts[sent(rows, texts.device)])
        read_from = begins[rows].tolist()
        return _values(steps, _whole(last, embeddings) if read is None else _suffixes(read, embeddings, read_from))

    for pack in _packs(pending, begins.tolist(), texts.shape[1], last.batch_size):
        values[pack] = in_parts(last, torch.tensor(pack), work)
        last.stored.keep({names[row]: values[row].tolist() for row in pack})
    return torch.where(begins[:, None] < lengths, values, values[place[0]])[place[1:]]


def _read(step: Step) -> _Read | None:
    """Run a text and keep its KV cache; None if the layers cannot be run one by one, so texts have to be run whole."""
    try:
        trunk = trunk_of(step.model, len(step.ids))
        run = record_run(trunk.layers, trunk.enter(step.embeddings), ())
        check_trunk(step.model, trunk, step.embeddings, run.states[-1])
    except UnsupportedModelError:
        return None
    return _Read(trunk, run.past)


def _packs(rows: Sequence[int], begins: list[int], n_tokens: int, batch_size: int) -> Iterator[list[int]]:
    """Group rows into packs of at most ``batch_size`` rows and ``LARGEST_TREE`` tokens, longest rows first.

    The rows that an interrupted run has stored are whole packs, so the others form the same packs without them.
    """
    pack: list[int] = []
    size = 0
    for row in sorted(rows, key=begins.__getitem__):
        length = n_tokens - begins[row]
        if pack and (len(pack) == batch_size or size + length > LARGEST_TREE):
            yield pack
            pack, size = [], 0
        pack.append(row)
        size += length
    if pack:
        yield pack


def _values(steps: Sequence[Step], texts: _Masked) -> Tensor:
    """Return the values of all steps, [R, G] float64 on the CPU; 0 if a suffix begins after the step's text."""
    values = torch.zeros(len(texts.begins), len(steps), dtype=torch.float64)
    for some in _head_parts(steps, texts.begins):
        sizes = [len(rows) for _, rows in some]
        index = [texts.firsts[row] + len(steps[number].ids) - 1 for number, rows in some for row in rows]
        logits = texts.logits(texts.states[index_on(texts.states.device, index)]).split(sizes)
        read = [_read_at(steps[number], one, texts, rows) for (number, rows), one in zip(some, logits, strict=True)]
        # Together, because each copy to the CPU waits for the device.
        for (number, rows), of_step in zip(some, torch.cat(read).cpu().split(sizes), strict=True):
            values[rows, number] = of_step.double()
    return values


def _read_at(step: Step, logits: Tensor, texts: _Masked, rows: list[int]) -> Tensor:
    """Return the step's values of some texts, [B], for the logits after its text in each, [B, V]."""
    embeddings = texts.embeddings[index_on(texts.embeddings.device, rows), : len(step.ids)]
    return step.read(logits, embeddings)


def _head_parts(steps: Sequence[Step], begins: list[int]) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield steps, by index, with the rows computed at their last token, in groups of up to ``HEAD_ROWS`` such rows."""
    part: list[tuple[int, list[int]]] = []
    size = 0
    for number, step in enumerate(steps):
        rows = [row for row, begin in enumerate(begins) if begin < len(step.ids)]
        if part and size + len(rows) > HEAD_ROWS:
            yield part
            part, size = [], 0
        if rows:
            part.append((number, rows))
            size += len(rows)
    yield part


def _whole(step: Step, embeddings: Tensor) -> _Masked:
    """Run R texts, [R, T, D], from their first token on, with the model's own forward pass."""
    states = step.states(embeddings)  # of an encoder-decoder, the decoder's only
    n_rows, n_columns = states.shape[:2]
    before = embeddings.shape[1] - n_columns
    firsts = [row * n_columns - before for row in range(n_rows)]
    return _Masked(embeddings, [0] * n_rows, states.flatten(0, 1), firsts, step.head)


def _suffixes(read: _Read, embeddings: Tensor, begins: list[int]) -> _Masked:
    """Run R texts, [R, T, D], each from its first masked token on, with the KV cache of the unmasked text."""
    T = embeddings.shape[1]
    entered = read.trunk.enter(embeddings)  # [R, T, D]
    cells = torch.cat([row[begin:] for row, begin in zip(entered, begins, strict=True)])[None, None]  # [1, 1, M, D]
    columns = torch.cat([torch.arange(begin, T) for begin in begins])  # [M]
    shared = max(begins)  # no row attends to more of the KV cache
    windows = {layer.window for layer in read.trunk.layers}
    device = read.trunk.device
    masks = {window: sent(_mask(columns, begins, T, shared, window), device) for window in windows}
    columns = sent(columns, device)
    for layer, past in zip(read.trunk.layers, read.past, strict=True):
        past = Past(past.keys[:, :, :shared], past.values[:, :, :shared])
        context = Context(past, masks[layer.window].to(layer.device), columns.to(layer.device))
        cells, _ = run_layer(layer, cells.to(layer.device), context, Untapped())
    ends = accumulate(T - begin for begin in begins)
    return _Masked(embeddings, begins, cells[0, 0], [end - T for end in ends], read.trunk.logits)


def _mask(columns: Tensor, begins: list[int], n_tokens: int, shared: int, window: int | None) -> Tensor:
    """Return the additive attention mask, [M, P + M]: 0 for a token's prefix and its own suffix, else -inf.

    Args:
        columns: [M], the columns of the tokens of all suffixes.
        begins: [R], the column where each suffix begins.
        n_tokens: T.
        shared: P, the number of cached tokens that are used.
        window: how many columns back a token attends; None without a limit.
    """
    row = torch.repeat_interleave(torch.arange(len(begins)), n_tokens - torch.tensor(begins))  # [M]
    text = torch.arange(shared)
    before = text < torch.tensor(begins)[row][:, None]  # [M, P]
    own = (row[:, None] == row) & (columns <= columns[:, None])  # [M, M]
    sees = torch.cat([before, own], dim=1)
    if window is not None:
        sees &= columns[:, None] - torch.cat([text, columns]) <= window
    return torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))
