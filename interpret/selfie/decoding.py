"""Greedy decoding after an interpretation prompt with states inserted into its slots, and scoring of the texts.

All interpretations of a template share computation, with exact results: the columns (token positions) before the first
slot and the layers before the first insertion run once. Rows whose text has ended leave the batch. Probabilities of
generated tokens are computed during decoding. Scoring the same texts under another condition takes one forward pass:
with another state inserted, for all tokens of a text at once; with nothing inserted, for all texts at once, as a tree
of their common prefixes; with words in place of the slots, likewise after the beginning that the words have in common.
Families that are described without their parts are decoded by ``whole_passes``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of, input_device
from interpret.device import index_on, sent, total_memory
from interpret.engine.continuations import RowMemory, at_once, run_rows
from interpret.engine.greedy import end_tokens
from interpret.engine.layers import Context, Past, Untapped, run_layer
from interpret.engine.masks import masks_for
from interpret.engine.prefix_tree import LARGEST_TREE, PrefixTree, groves, read_tree
from interpret.engine.recording import RecordedRun, record_run
from interpret.engine.trunk import Trunk, check_rotation, check_trunk, trunk_of
from interpret.selfie.templates import InterpretationPrompt
from interpret.selfie.whole_passes import (
    WholePrimed,
    WholeStart,
    prime_whole,
    score_after_whole,
    score_plain_whole,
    score_whole,
    write_whole,
)
from interpret.selfie.written import Written, most_likely
from interpret.surgery.hooks import bind, overlay
from interpret.surgery.plan import plan_surgery

LARGEST_BATCH = 128
"""Larger batches are hardly faster on a CPU, and progress would be shown less often."""
MEMORY_SHARE = 8
"""An automatically chosen batch uses at most 1 / ``MEMORY_SHARE`` of the device's memory."""
GPU_TREE = 1024
"""Maximum number of tokens in a prefix tree on a GPU, where a pass over few tokens costs as much as one over many."""
COLUMNS_APART = 32
"""Texts after different beginnings of a prompt share a tree if the beginnings differ by fewer tokens, which the tree
then holds: larger trees are faster, but attention compares all pairs of their tokens."""
_LOGITS = 2**26
"""Maximum number of logits in memory at once when many positions are scored: 256 MiB in float32."""


@dataclass(frozen=True)
class Primed:
    """The recorded run of a template with nothing inserted, shared by all interpretations with this template."""

    model: PreTrainedModel
    template: InterpretationPrompt
    trunk: Trunk
    run: RecordedRun
    """The run of all T columns, with one sample."""
    logits: Tensor
    """[1, V], for the token after the template."""

    def past(self, n_columns: int) -> list[Past]:
        """Return the keys and values of the first ``n_columns`` columns in each layer, without a copy."""
        return [Past(past.keys[:, :, :n_columns], past.values[:, :, :n_columns]) for past in self.run.past]


@dataclass(frozen=True)
class Start:
    """R rows that have read a template and can generate."""

    primed: Primed
    shared: list[Past]
    """For each layer, keys and values of the columns that all rows share."""
    memory: list[RowMemory]
    """For each layer, keys and values of the remaining columns up to T, separate for each row."""
    logits: Tensor
    """[R, V], for the first generated token."""

    @property
    def length(self) -> int:
        """T, the number of columns of the template."""
        return len(self.primed.template.ids)


@torch.no_grad()
def prime(model: PreTrainedModel, template: InterpretationPrompt, new_tokens: int) -> Primed | WholePrimed:
    """Run a template with nothing inserted; up to ``new_tokens`` tokens can then be generated after it.

    Raises:
        InputError: if the rotary embeddings of the model change while it writes.
        UnsupportedModelError: if the model is not of a supported family, or does not compute as its family does.
    """
    if anatomy_of(model).family.parts is None:
        return prime_whole(model, template, new_tokens)
    trunk = trunk_of(model, len(template.ids) + new_tokens)
    check_rotation(trunk, len(template.ids))
    embeddings = trunk.embed(torch.tensor([template.ids], device=trunk.device))  # [1, T, width]
    run = record_run(trunk.layers, trunk.enter(embeddings), ())
    check_trunk(model, trunk, embeddings, run.states[-1])
    return Primed(model, template, trunk, run, trunk.logits(run.states[-1][:, -1]))


def start_plain(primed: Primed | WholePrimed) -> Start | WholeStart:
    """Return the start of a single row with nothing inserted."""
    if isinstance(primed, WholePrimed):
        return WholeStart(primed, [None])
    memory = [RowMemory.empty(past, 1, 0) for past in primed.run.past]
    return Start(primed, primed.past(len(primed.template.ids)), memory, primed.logits)


@torch.no_grad()
def start_inserted(primed: Primed | WholePrimed, insertions: Sequence[Mapping[Any, Any]]) -> Start | WholeStart:
    """Run a template with insertions into its slots, one row for each of R ``insert_info`` entries.

    Raises:
        SpecError: if an insertion does not fit the template or the model.
    """
    if isinstance(primed, WholePrimed):
        return WholeStart(primed, insertions)
    first, length = primed.template.slots[0], len(primed.template.ids)
    memory = [RowMemory.empty(past, len(insertions), length - first) for past in primed.run.past]
    logits = primed.logits.new_empty(len(insertions), primed.logits.shape[1])
    # Sorted by first edited layer: the rows that already differ from the template are then the first rows.
    order = sorted(range(len(insertions)), key=lambda row: _first_layer(insertions[row]))
    done = 0
    for rows in at_once(order, length - first, primed.trunk.device):
        part = [own.part(done, done + len(rows)) for own in memory]
        logits[done : done + len(rows)] = _read_slots(primed, [insertions[row] for row in rows], part)
        done += len(rows)
    for own in memory:
        own.length = length - first
    start = Start(primed, primed.past(first), memory, logits)
    return start if order == sorted(order) else _chosen(start, [order.index(row) for row in range(len(order))])


def _first_layer(insertion: Mapping[Any, Any]) -> int:
    return min(key for key in insertion if isinstance(key, int))


def _read_slots(primed: Primed, insertions: Sequence[Mapping[Any, Any]], memory: Sequence[RowMemory]) -> Tensor:
    """Run the columns from the first slot on for R rows, sorted by first edited layer, and fill their memory.

    Returns:
        [R, V], logits of the token after the template.
    """
    first, length, trunk = primed.template.slots[0], len(primed.template.ids), primed.trunk
    n_rows, n_tokens, columns = len(insertions), length - first, slice(first, length)
    width = primed.run.states[0].shape[2]
    plan = plan_surgery(insertions, token_counts=[length] * n_rows, n_layers=len(trunk.layers), width=width)
    of_tokens = torch.arange(length).expand(n_rows, -1)
    starts = [_first_layer(insertion) for insertion in insertions]
    masks = masks_for(trunk.layers, n_tokens, first, primed.logits)
    cells = primed.run.states[0][:0, None, columns]  # [rows that already differ, 1, N, D]
    for index, (layer, past, own) in enumerate(zip(trunk.layers, primed.run.past, memory, strict=True)):
        plain = primed.run.states[index][:, None, columns].to(layer.device)
        cells = torch.cat([cells.to(layer.device), plain.expand(starts.count(index), -1, -1, -1)])
        if index in plan.edits:
            cells = overlay(cells[:, 0], bind(plan.edits[index], of_tokens), first)[:, None]
        # Rows that do not differ yet have the keys and values of the template.
        own.keys[:] = past.keys[:, :, None, columns]
        own.values[:] = past.values[:, :, None, columns]
        if not len(cells):
            continue
        shared = Past(past.keys[:, :, :first], past.values[:, :, :first])
        context = Context(shared, masks[index].to(layer.device), columns, own.part(0, len(cells)))
        only_last = n_tokens - 1 if index == len(trunk.layers) - 1 else 0
        cells, _ = run_layer(layer, cells, context, Untapped(), only_last)
    return trunk.logits(cells[:, 0, -1])


def _chosen(start: Start, rows: Sequence[int], room: int = 0) -> Start:
    """Return a copy of some rows, in the given order, with room for more tokens."""
    index = index_on(start.logits.device, rows)
    memory = [own.chosen(index, room) for own in start.memory]
    return Start(start.primed, start.shared, memory, start.logits[index])


@torch.no_grad()
def write(start: Start | WholeStart, rows: Sequence[int], new_tokens: int) -> list[Written]:
    """Generate greedily from some rows of a start, up to the end-of-text token or ``new_tokens`` tokens."""
    if isinstance(start, WholeStart):
        return write_whole(start, rows, new_tokens)
    trunk, start = start.primed.trunk, _chosen(start, rows, new_tokens)
    ends, memory = end_tokens(start.primed.model), start.memory
    written = [Written([], []) for _ in rows]
    active: list[Written | None] = list(written)  # the text of each row of the batch; None if it has ended
    token, said = most_likely(start.logits)  # [R]
    for step in range(new_tokens):
        going: list[int] = []
        for place, (text, (number, one_p)) in enumerate(zip(active, said.tolist(), strict=True)):
            if text is None:
                continue
            one_id = int(number)
            unreadable = isnan(one_p)  # a logit is NaN or infinite: there is no most likely token, and the text ends
            if unreadable or one_id in ends:
                active[place] = None
            if one_id in ends and not unreadable:
                continue
            text.ids.append(one_id)
            text.probabilities.append(one_p)
            if unreadable:
                continue
            going.append(place)
        if not going or step == new_tokens - 1:
            break
        # Removing rows copies the memory of the remaining ones, which costs about half a step.
        if (len(active) - len(going)) * (new_tokens - step) > len(active):
            rows_left = index_on(token.device, going)
            active, token = [active[place] for place in going], token[rows_left]
            memory = [own.chosen(rows_left, new_tokens - step) for own in memory]
        x = trunk.enter(trunk.embed(token[:, None]), start.length + step)
        token, said = most_likely(trunk.logits(run_rows(trunk, x, start.shared, memory)[:, -1]))
    return written


@torch.no_grad()
def score(start: Start | WholeStart, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the probability of each token of N texts; text n continues row ``rows[n]`` of a start."""
    if isinstance(start, WholeStart):
        return score_whole(start, rows, texts)
    found = []
    longest = max((len(text) for text in texts), default=0)
    for some in at_once(range(len(rows)), max(1, longest), start.primed.trunk.device):
        found += _score(_chosen(start, [rows[place] for place in some], longest), [texts[place] for place in some])
    return found


def _score(start: Start, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Score one text per row of a start that has room for it, all tokens in one pass."""
    trunk, longest = start.primed.trunk, max(len(text) for text in texts)
    padded = [[*text, *[0] * (longest - len(text))] for text in texts]
    ids = sent(torch.tensor(padded, dtype=torch.long), trunk.device)  # [N, G]
    found = torch.zeros(ids.shape, dtype=start.logits.dtype, device=trunk.device)
    if longest:
        found[:, :1] = start.logits.softmax(-1).gather(1, ids[:, :1])
    if longest > 1:
        x = trunk.enter(trunk.embed(ids[:, :-1]), start.length)
        states = run_rows(trunk, x, start.shared, start.memory)  # [N, G - 1, D]
        places = [(row, place) for row, text in enumerate(texts) for place in range(1, len(text))]
        row, place = sent(torch.tensor(places), trunk.device).unbind(1)
        found[row, place] = _probabilities(trunk, states[row, place - 1], ids[row, place])
    return [values[: len(text)] for values, text in zip(found.tolist(), texts, strict=True)]


@torch.no_grad()
def score_plain(primed: Primed | WholePrimed, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the probability of each token of N texts after the template with nothing inserted."""
    if isinstance(primed, WholePrimed):
        return score_plain_whole(primed, texts)
    ids = index_on(primed.logits.device, [text[0] for text in texts if text])
    firsts = iter(primed.logits[0].softmax(-1)[ids].tolist())
    further = _score_trees(primed.trunk, primed.run.past, [text[:1] for text in texts], [text[1:] for text in texts])
    return [[next(firsts), *rest] if text else [] for text, rest in zip(texts, further, strict=True)]


@torch.no_grad()
def score_after(
    primed: Primed | WholePrimed, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the probability of each token of N texts; text n continues ``prompts[n]``, with nothing inserted.

    The prompts are expected to share their beginnings: the longest runs once, and each of the others computes only what
    follows the beginning that it shares with the longest.
    """
    if isinstance(primed, WholePrimed):
        return score_after_whole(primed, prompts, texts)
    longest = max(prompts, key=len)
    trunk = trunk_of(primed.model, max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)))
    embeddings = trunk.embed(torch.tensor([longest], device=trunk.device))  # [1, T, width]
    run = record_run(trunk.layers, trunk.enter(embeddings), ())
    by_start: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        shared = min(_n_shared(longest, prompt), len(prompt) - 1)  # the last token predicts the text
        by_start.setdefault(shared - shared % COLUMNS_APART, []).append(number)
    found: list[list[float]] = [[] for _ in texts]
    for start, numbers in by_start.items():
        past = [Past(one.keys[:, :, :start], one.values[:, :, :start]) for one in run.past]
        heads = [prompts[number][start:] for number in numbers]
        scored = _score_trees(trunk, past, heads, [texts[number] for number in numbers])
        for number, p in zip(numbers, scored, strict=True):
            found[number] = p
    return found


def _n_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts share at their beginnings."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _score_trees(
    trunk: Trunk, past: Sequence[Past], heads: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Score N texts; text n follows the shared context ``past`` and then the tokens of ``heads[n]``, at least one."""
    found: list[list[float]] = [[] for _ in texts]
    numbers = [number for number, text in enumerate(texts) if text]
    # The last token of a text is predicted but not read.
    read = [[*heads[number], *texts[number][:-1]] for number in numbers]
    largest = GPU_TREE if trunk.device.type == "cuda" else LARGEST_TREE
    for grove in groves(read, largest):
        steps = {}  # index of a text -> (node, the token after it) for each of its tokens
        for place, nodes in grove.places.items():
            text = texts[numbers[place]]
            steps[numbers[place]] = list(zip(nodes[-len(text) :], text, strict=True))
        pairs = list(dict.fromkeys(pair for of_text in steps.values() for pair in of_text))
        p = dict(zip(pairs, _follow(trunk, grove.tree, past, pairs), strict=True))
        for number, of_text in steps.items():
            found[number] = [p[pair] for pair in of_text]
    return found


def _follow(trunk: Trunk, tree: PrefixTree, past: Sequence[Past], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Return the probability of a token after a node of the tree, for (node, token id) pairs."""
    nodes, ids = sent(torch.tensor(pairs), trunk.device).unbind(1)
    return _probabilities(trunk, read_tree(trunk, tree, past)[nodes], ids).tolist()


def _probabilities(trunk: Trunk, states: Tensor, ids: Tensor) -> Tensor:
    """Return the probability of token ``ids[n]`` after state ``states[n]``, [N, D], [N] -> [N]."""
    size = max(1, _LOGITS // trunk.n_logits)
    pieces = zip(states.split(size), ids.split(size), strict=True)
    return torch.cat([trunk.logits(x).softmax(-1).gather(1, one[:, None]).squeeze(1) for x, one in pieces])


def automatic_batch_size(primed: Primed | WholePrimed, new_tokens: int) -> int:
    """Choose the number of rows of a batch, from the memory that a row needs and the device's total memory.

    The total memory is used, not the free memory, so that a resumed run has the same batches.
    """
    if isinstance(primed, WholePrimed):
        share = total_memory(input_device(primed.model)) // MEMORY_SHARE
        return max(1, min(LARGEST_BATCH, share // primed.bytes_of_row(new_tokens)))
    room = len(primed.template.ids) - primed.template.slots[0] + new_tokens
    column = sum(2 * past.keys[0, :, 0].numel() * past.keys.element_size() for past in primed.run.past)
    # The start is kept for scoring with other states, and the memory is copied when rows leave the batch.
    row = 3 * room * column + 8 * primed.logits.numel()
    return max(1, min(LARGEST_BATCH, total_memory(primed.trunk.device) // MEMORY_SHARE // row))
