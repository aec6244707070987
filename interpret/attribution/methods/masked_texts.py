"""What is attributed, with some tokens masked: many such texts, each computed from its first masked token on only.

A causal model's states before the first masked token are those of the text itself. So the text is read once and its
keys and values are kept; of each masked text only the rest is computed, against them. These rests are packed one after
the other into one row, each seeing the text up to where it begins and then itself. Nor do states hang on what follows:
one pass of a masked text serves all steps, which read it where their own text ends.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from interpret.attribution.steps.fitting import in_parts
from interpret.attribution.steps.step import Step
from interpret.engine.layers import Context, Past, Untapped, run_layer
from interpret.engine.prefix_tree import LARGEST_TREE
from interpret.engine.recording import record_run
from interpret.engine.trunk import Trunk, check_trunk, trunk_of
from interpret.errors import UnsupportedModelError

HEAD_ROWS = 64
"""Places sent through the head at once; a vocabulary's logits are large."""


@dataclass(frozen=True)
class _Read:
    """A model that has read the text of the last step: T tokens."""

    trunk: Trunk
    past: list[Past]
    """Keys and values of each layer."""


@dataclass(frozen=True)
class _Masked:
    """R masked texts that have been read."""

    embeddings: Tensor
    """[R, T, D]."""
    begins: list[int]
    """[R], the columns they were read from."""
    states: Tensor
    """[M, D], one text after the other."""
    firsts: list[int]
    """[R], where the state of a text's column 0 is among these, or would be."""
    logits: Callable[[Tensor], Tensor]
    """States, [P, D] -> [P, V]."""


@torch.no_grad()
def masked_values(steps: Sequence[Step], masked: Tensor, replacement: Tensor) -> Tensor:
    """Return the values of G steps for texts in which some tokens are masked.

    Args:
        steps: of one text, in order; the last one's has T tokens.
        masked: [N, T] bool on the CPU, which tokens are masked. A step takes no notice of those behind its own text.
        replacement: [1, T, D], the embeddings masked tokens have instead of their own.

    Returns:
        [N, G], float64 on the CPU.
    """
    last = steps[-1]
    lengths = torch.tensor([len(step.ids) for step in steps])
    itself = torch.zeros(1, masked.shape[1], dtype=torch.bool)
    # Equal rows are computed once. The text itself stands for rows a step has not come to yet.
    different, place = torch.cat([itself, masked]).unique(dim=0, return_inverse=True)
    read = _read(last)
    begins = torch.where(different.any(1), different.int().argmax(1), lengths[0] - 1)
    if read is None:
        begins = torch.zeros_like(begins)
    different = different.to(last.embeddings.device)
    values = torch.empty(len(different), len(steps), dtype=torch.float64)

    def work(rows: Tensor) -> Tensor:
        embeddings = torch.where(different[rows.to(different.device), :, None], replacement, last.embeddings)
        read_from = begins[rows].tolist()
        return _values(steps, _whole(last, embeddings) if read is None else _rests(read, embeddings, read_from))

    for pack in _packs(begins.tolist(), masked.shape[1], last.batch_size):
        values[pack] = in_parts(last, torch.tensor(pack), work)
    return torch.where(begins[:, None] < lengths, values, values[place[0]])[place[1:]]


def _read(step: Step) -> _Read | None:
    """Let the model read a text; None where its layers cannot be run part by part, so that texts run whole."""
    try:
        trunk = trunk_of(step.model, len(step.ids))
        run = record_run(trunk.layers, trunk.enter(step.embeddings), ())
        check_trunk(step.model, trunk, step.embeddings, run.states[-1])
    except UnsupportedModelError:
        return None
    return _Read(trunk, run.past)


def _packs(begins: list[int], n_tokens: int, batch_size: int) -> Iterator[list[int]]:
    """Put rows together, up to ``batch_size`` of them and ``LARGEST_TREE`` tokens, longest first."""
    pack: list[int] = []
    size = 0
    for row in sorted(range(len(begins)), key=begins.__getitem__):
        length = n_tokens - begins[row]
        if pack and (len(pack) == batch_size or size + length > LARGEST_TREE):
            yield pack
            pack, size = [], 0
        pack.append(row)
        size += length
    yield pack


def _values(steps: Sequence[Step], texts: _Masked) -> Tensor:
    """Return the values of all steps for texts, [R, G] float64 on the CPU; 0 where a text was read from later on."""
    values = torch.zeros(len(texts.begins), len(steps), dtype=torch.float64)
    for some in _head_parts(steps, texts.begins):
        index = [texts.firsts[row] + len(steps[number].ids) - 1 for number, rows in some for row in rows]
        logits = texts.logits(texts.states[index]).split([len(rows) for _, rows in some])
        for (number, rows), of_step in zip(some, logits, strict=True):
            step = steps[number]
            values[rows, number] = step.read(of_step, texts.embeddings[rows, : len(step.ids)]).cpu().double()
    return values


def _head_parts(steps: Sequence[Step], begins: list[int]) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield steps, by number, with the texts that reach them, so many as go through the head at once."""
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
    """Read R texts, [R, T, D], from their first token on, by the model's own code."""
    states = step.states(embeddings)  # of a translation model only those of its decoder
    n_rows, n_columns = states.shape[:2]
    before = embeddings.shape[1] - n_columns
    firsts = [row * n_columns - before for row in range(n_rows)]
    return _Masked(embeddings, [0] * n_rows, states.flatten(0, 1), firsts, step.head)


def _rests(read: _Read, embeddings: Tensor, begins: list[int]) -> _Masked:
    """Read R texts, [R, T, D], each from where it begins to differ from the text itself."""
    T = embeddings.shape[1]
    entered = read.trunk.enter(embeddings)  # [R, T, D]
    cells = torch.cat([row[begin:] for row, begin in zip(entered, begins, strict=True)])[None, None]  # [1, 1, M, D]
    columns = torch.cat([torch.arange(begin, T) for begin in begins])  # [M]
    shared = max(begins)  # no row sees more of the text itself
    windows = {layer.window for layer in read.trunk.layers}
    masks = {window: _mask(columns, begins, T, shared, window) for window in windows}
    for layer, past in zip(read.trunk.layers, read.past, strict=True):
        past = Past(past.keys[:, :, :shared], past.values[:, :, :shared])
        context = Context(past, masks[layer.window].to(layer.device), columns.to(layer.device))
        cells, _ = run_layer(layer, cells.to(layer.device), context, Untapped())
    ends = accumulate(T - begin for begin in begins)
    return _Masked(embeddings, begins, cells[0, 0], [end - T for end in ends], read.trunk.logits)


def _mask(columns: Tensor, begins: list[int], n_tokens: int, shared: int, window: int | None) -> Tensor:
    """Return what is added to attention scores, [M, P + M]: 0 for the text's beginning and the own rest, else -inf.

    Args:
        columns: [M], where the tokens of all rests stand.
        begins: where each rest begins.
        n_tokens: T.
        shared: P, the text's first tokens.
        window: how far back a token sees, where that is limited.
    """
    row = torch.repeat_interleave(torch.arange(len(begins)), n_tokens - torch.tensor(begins))  # [M]
    text = torch.arange(shared)
    before = text < torch.tensor(begins)[row][:, None]  # [M, P]
    own = (row[:, None] == row) & (columns <= columns[:, None])  # [M, M]
    sees = torch.cat([before, own], dim=1)
    if window is not None:
        sees &= columns[:, None] - torch.cat([text, columns]) <= window
    return torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))
