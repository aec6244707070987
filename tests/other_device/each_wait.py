"""How often the CPU waits for the other device; run by test_every_call.py.

A GPU works on while the CPU prepares more, until the CPU asks for a number. Where it asks in a loop, the GPU idles.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of, check_logits, check_parts, check_scores
from interpret.attribution.methods.layer_gradients import LAYER_SITES, layer_gradient_x_activation
from interpret.attribution.methods.masking import occlusion
from interpret.attribution.steps.functions import probability
from interpret.attribution.steps.step import Step
from interpret.engine.recording import record_run
from interpret.engine.trunk import trunk_of
from interpret.selfie.readings import are_finite, insertion
from interpret.selfie.settings import Settings
from interpret.slots import decoding
from interpret.slots.decoding import Start, prime, score, score_plain, start_inserted, write
from interpret.surgery.hooks import applied
from interpret.surgery.plan import plan_surgery
from interpret.sweep import Cell, Metric, Pin, grid, run_sweep
from interpret.sweep.columns import Column, run_column
from interpret.tracing.mediators import MEDIATORS
from other_device.calls import TEMPLATE, TOKENIZER, model_of
from other_device.device import ELSEWHERE, elsewhere
from other_device.waiting import Waits
from reference.kinds import D, L

S, T = 2, 6
IDS = tuple(range(5, 5 + T))
P = {"p": Metric("probability", (7, 8)), "d": Metric("logit_difference", (7,), (9,))}
SETTINGS = Settings(new_tokens=4)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    with elsewhere():
        model = model_of(request.param).to(ELSEWHERE)
        check_logits(model)  # made once per model, and not counted
        check_parts(model)
        check_scores(model)
        yield model


def counted(work: Callable[[], Any]) -> list[str]:
    """Return the operations of some work that wait."""
    with Waits() as waits:
        work()
    return waits.found


WAITING = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "copy from": lambda x: torch.empty(3).copy_(x),
    "copy to": lambda x: x.copy_(torch.ones(3)),
    "to": lambda x: torch.ones(3).to(x.device),
    "made there of a list": lambda x: torch.tensor([1, 2], device=x.device),
    "list as index": lambda x: x[[0, 2]],
    "index on the CPU": lambda x: x[torch.tensor([1])],
    "written at a list": lambda x: x.__setitem__([0, 2], 1.0),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x + 1),
}
NOT_WAITING = {
    "arithmetic": lambda x: (x * 2 + torch.tensor(1.0)).softmax(-1),
    "slices": lambda x: x[1:].clone().__setitem__(slice(0, 1), 3.0),
    "masked fill": lambda x: x.masked_fill(x > 0, 0.0),
    "sent": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "index there": lambda x: x[torch.arange(2, device=x.device)],
    "to itself": lambda x: x.to(x.device, torch.float64),
    "of the CPU": lambda x: torch.ones(3).tolist(),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_counted(name):
    with elsewhere():
        x = torch.randn(3, device="elsewhere")
        with Waits() as waits:
            WAITING[name](x)
    assert len(waits.found) == 1


@pytest.mark.parametrize("name", NOT_WAITING)
def test_what_does_not_wait_is_not_counted(name):
    with elsewhere():
        x = torch.randn(3, device="elsewhere")
        with Waits() as waits:
            NOT_WAITING[name](x)
    assert waits.found == []


# ------------------------------------------------------------------------------------------------------- sweeps
UNIT = {"heads": 1, "neurons": 3}
KINDS = {name: mediator.cells(T, L, 2, (1, 3)) for name, mediator in MEDIATORS.items() if name != "mixer_out"} | {
    site: grid(site, n_tokens=T, n_layers=L, window=2, unit=unit) for site, unit in UNIT.items()
}
# Cells that restore an MLP, or hold it, in layers that differ from cell to cell: their rows are no neighbours.
KINDS["scattered"] = [
    Cell("mlp_out", token, start, stop, None, (Pin("attn_out", "all"),))
    for token in range(T)
    for start, stop in ((0, 1), (0, L), (1, 2), (1, L))
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_a_sweep_never_waits(model, kind):
    trunk = trunk_of(model, T)
    starts = [trunk.enter(torch.randn(rows, T, D, device="elsewhere")) for rows in (S, 1)]
    with torch.no_grad():
        base, donor = (record_run(trunk.layers, start, ("heads", "attn_out", "neurons", "mlp_out")) for start in starts)
        cells = tuple(sorted((cell for cell in KINDS[kind] if cell.token == 1), key=lambda cell: cell.start))
        column = Column(cells, tuple(range(len(cells))))
        found = []
        assert counted(lambda: found.extend(run_column(trunk.layers, base, donor, column, n_read=2, chunk=3))) == []
    assert sum(len(states) for states in found) == len(cells) > 1


def test_a_sweep_waits_as_often_for_all_tokens_as_for_one(model):
    base = torch.randn(S, T, D, device="elsewhere")
    donor = base[:1] + 1.0
    some = [cell for cells in KINDS.values() for cell in cells]

    def waits(cells: list[Cell]) -> list[str]:
        return counted(lambda: run_sweep(model, base, donor, cells, P))

    # The check of the model, the first token that differs, and in the end the metrics.
    assert waits(some) == waits([cell for cell in some if cell.token == 2])


# --------------------------------------------------------------------------------------------- interpretations
def inserted(model: PreTrainedModel, n_rows: int, new_tokens: int) -> Start:
    vectors = torch.randn(n_rows, D, device="elsewhere")
    primed = prime(model, TEMPLATE, new_tokens)
    return start_inserted(primed, [insertion(TEMPLATE, 1, vector, SETTINGS) for vector in vectors])


def test_each_new_token_is_waited_for_once(model):
    start = inserted(model, 5, 6)
    written = []
    waits = counted(lambda: written.extend(write(start, [4, 0, 1, 2, 3], 6)))
    longest = max(len(one.ids) for one in written)
    assert longest == 6
    assert waits == ["aten._to_copy.default"] * longest


@pytest.mark.parametrize("model", ["llama"], indirect=True)  # its texts differ
def test_rows_that_leave_the_batch_are_not_waited_for(model, monkeypatch):
    start = inserted(model, 5, 6)
    texts = [one.ids for one in write(start, range(5), 6)]
    (end, *_) = [text[2] for text in texts if text[2] not in text[:2]]
    monkeypatch.setattr(decoding, "end_tokens", lambda model: [end])
    shorter = []
    waits = counted(lambda: shorter.extend(write(start, range(5), 6)))
    assert any(len(one.ids) == 2 for one in shorter)
    assert len(waits) <= 6


@pytest.mark.parametrize("n_rows", [2, 7])
def test_all_texts_are_scored_with_one_wait_each_way(model, n_rows):
    start = inserted(model, n_rows, 6)
    texts = [[3, 1, 4, 1, 5][: 1 + row % 5] for row in range(n_rows)]
    assert counted(lambda: score(start, range(n_rows), texts)) == ["aten._to_copy.default"]
    # The first tokens, and those after the nodes of one tree.
    assert counted(lambda: score_plain(start.primed, texts)) == ["aten._to_copy.default"] * 2


def test_inserting_states_waits_for_nothing(model):
    start = inserted(model, 3, 4)
    vectors = torch.randn(3, D, device="elsewhere")
    info = [insertion(TEMPLATE, layer, vector, SETTINGS) for layer, vector in enumerate(vectors)]
    assert counted(lambda: start_inserted(start.primed, info)) == []
    assert counted(lambda: are_finite(list(vectors))) == ["aten._to_copy.default"]


# ------------------------------------------------------------------------------------- surgery and attribution
@pytest.mark.parametrize("where", ["cpu", "elsewhere"])
def test_edits_wait_for_nothing(model, where):
    ids = torch.tensor([IDS, IDS], device="elsewhere")
    info = [{layer: ([0, 3], torch.randn(1, 2, D, device=where)) for layer in (1, 2)}, None]
    plan = plan_surgery(info, token_counts=[T, T], n_layers=L, width=D)

    def run() -> None:
        with torch.no_grad():
            model(ids, use_cache=False)

    stock = counted(run)
    with applied(anatomy_of(model), plan, torch.arange(T).repeat(2, 1)):
        assert counted(run) == stock


def step(model: PreTrainedModel, n_tokens: int) -> Step:
    return Step(model, TOKENIZER, IDS[:n_tokens], 7, None, probability, 8)


def test_derivatives_at_all_layers_wait_as_often_as_at_one(model):
    every = [f"{site}.{layer}" for layer in range(L) for site in LAYER_SITES if site != "mixer_out"]
    layer_gradient_x_activation([step(model, T)], every)  # what is checked once per model is done
    few, many = (
        counted(lambda names=names: layer_gradient_x_activation([step(model, T)], names))
        for names in (every[:1], every)
    )
    assert few == many


def test_the_steps_of_masked_texts_are_read_together(model):
    few, many = (counted(lambda n=n: occlusion([step(model, T - late) for late in reversed(range(n))])) for n in (1, 4))
    assert few == many
