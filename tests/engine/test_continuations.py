"""Continuations of a shared prefix, compared with full passes of each row alone."""

import pytest
import torch

from interpret.engine import continuations
from interpret.engine.continuations import RowMemory, at_once, run_rows
from interpret.engine.recording import record_run
from interpret.engine.trunk import trunk_of
from reference.kinds import KINDS
from reference.overlay import reference_forward
from reference.tiny import hooks_on, tiny_model

CONTEXT, TEXTS = [5, 3, 9], [[7, 8, 9, 1], [2, 8, 4, 6], [7, 1, 1, 3]]


def begun(model, room):
    trunk = trunk_of(model, 10)
    run = record_run(trunk.layers, trunk.enter(trunk.embed(torch.tensor([CONTEXT]))), ())
    return trunk, run.past, [RowMemory.empty(past, len(TEXTS), room) for past in run.past]


def step(trunk, past, memory, ids):
    n_before = len(CONTEXT) + memory[0].length
    return trunk.logits(run_rows(trunk, trunk.enter(trunk.embed(torch.tensor(ids)), n_before), past, memory))


def expected(model, text):
    return reference_forward(model, CONTEXT + text, None, len(CONTEXT)).logits[len(CONTEXT) :]


@pytest.mark.parametrize(("kind", "window"), [*((kind, None) for kind in KINDS), ("mistral", 3)])
@torch.no_grad()
def test_rows_read_what_full_passes_read_in_steps_of_any_size(kind, window):
    model = tiny_model(kind)
    if window:
        model.config.sliding_window = window
    trunk, past, memory = begun(model, 4)
    texts = torch.tensor(TEXTS)
    parts = [step(trunk, past, memory, texts[:, some].tolist()) for some in (slice(0, 2), slice(2, 3), slice(3, 4))]
    for row, text in enumerate(TEXTS):
        assert torch.allclose(torch.cat(parts, dim=1)[row], expected(model, text), atol=1e-4)
    assert hooks_on(model) == 0


@torch.no_grad()
def test_chosen_rows_go_on_by_themselves():
    model = tiny_model("llama")
    trunk, past, memory = begun(model, 2)
    step(trunk, past, memory, [text[:2] for text in TEXTS])
    chosen = [own.chosen(torch.tensor([2, 0]), room=2) for own in memory]
    logits = step(trunk, past, chosen, [TEXTS[2][2:], TEXTS[0][2:]])
    for row, number in enumerate((2, 0)):
        assert torch.allclose(logits[row], expected(model, TEXTS[number])[2:], atol=1e-4)
    assert [own.length for own in memory] == [2] * len(memory), "the rows chosen from are as they were"


@torch.no_grad()
def test_neighbouring_rows_write_into_the_memory_they_are_part_of():
    model = tiny_model("gpt2")
    trunk, past, memory = begun(model, 4)
    for first, last in ((0, 1), (1, 3)):
        step(trunk, past, [own.part(first, last) for own in memory], [text[:3] for text in TEXTS[first:last]])
    for own in memory:
        own.length = 3
    logits = step(trunk, past, memory, [text[3:] for text in TEXTS])
    for row, text in enumerate(TEXTS):
        assert torch.allclose(logits[row], expected(model, text)[3:], atol=1e-4)


@pytest.mark.parametrize(("n_tokens", "sizes"), [(1, [10]), (150, [3, 3, 3, 1]), (5000, [1] * 10)])
def test_rows_are_cut_into_pieces_that_suit_a_cpu(n_tokens, sizes):
    pieces = list(at_once(range(10), n_tokens, torch.device("cpu")))
    assert [len(piece) for piece in pieces] == sizes
    assert [row for piece in pieces for row in piece] == list(range(10))
    assert all(len(piece) * n_tokens <= continuations.CPU_TOKENS or len(piece) == 1 for piece in pieces)


def test_a_gpu_takes_all_rows_at_once():
    assert [list(piece) for piece in at_once(range(10), 5000, torch.device("cuda"))] == [list(range(10))]
