"""What is attributed, with some tokens masked: many such texts, each computed from its first masked token on only.

A causal model's states before the first masked token are those of the text itself. So the text is read once and its
keys and values are kept; of each masked text only the rest is computed, against them. These rests are packed one after
the other into one row, each seeing the text up to where it begins and then itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from interpret.attribution.fitting import in_parts
from interpret.attribution.steps import Step
from interpret.errors import UnsupportedModelError
from interpret.layers import Context, Past, Untapped, run_layer
from interpret.prefix_tree import LARGEST_TREE
from interpret.recorded import record_run
from interpret.trunk import Trunk, check_trunk, trunk_of


@dataclass(frozen=True)
class _Read:
    """A model that has read the text of a step: T tokens."""

    trunk: Trunk
    past: list[Past]
    """Keys and values of each layer."""


@torch.no_grad()
def masked_values(step: Step, masked: Tensor, replacement: Tensor) -> Tensor:
    """Return the value of a step for texts in which some tokens are masked.

    Args:
        step: whose value; T tokens.
        masked: [N, T] bool, which tokens are masked.
        replacement: [1, T, D], the embeddings masked tokens have instead of their own.

    Returns:
        [N], float64 on the CPU.
    """
    masked = masked.to(step.embeddings.device)
    different, place = masked.unique(dim=0, return_inverse=True)  # equal rows are computed once
    read = _read(step)
    begins = _begins(different) if read else [0] * len(different)
    values = torch.empty(len(different), dtype=torch.float64)

    def work(rows: Tensor) -> Tensor:
        embeddings = torch.where(different[rows, :, None], replacement, step.embeddings)  # [R, T, D]
        starts = [begins[row] for row in rows.tolist()]
        logits = step.logits(embeddings) if read is None else _logits(read, embeddings, starts)
        return step.read(logits, embeddings).cpu().double()

    for rows in _packs(begins, masked.shape[1], step.batch_size):
        values[rows] = in_parts(step, torch.tensor(rows, device=masked.device), work)
    return values[place.cpu()]


def _read(step: Step) -> _Read | None:
    """Let the model read a text; None where its layers cannot be run part by part, so that texts run whole."""
    try:
        trunk = trunk_of(step.model, len(step.ids))
        run = record_run(trunk.layers, trunk.enter(step.embeddings), ())
        check_trunk(step.model, trunk, step.embeddings, run.states[-1])
    except UnsupportedModelError:
        return None
    return _Read(trunk, run.past)


def _begins(masked: Tensor) -> list[int]:
    """Return the first masked token of each row; the last token where none is, as it has to be read anyway."""
    last = masked.shape[1] - 1
    return torch.where(masked.any(1), masked.int().argmax(1), last).tolist()


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


def _logits(read: _Read, embeddings: Tensor, begins: list[int]) -> Tensor:
    """Return the logits after each of R texts, [R, T, D] -> [R, V], given where each begins to differ."""
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
    ends = torch.tensor([T - begin for begin in begins]).cumsum(0) - 1
    return read.trunk.logits(cells[0, 0, ends.to(cells.device)])


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
