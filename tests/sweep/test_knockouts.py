"""Attention knockout in sweeps, on every family, compared with full passes of the stock model."""

import re

import pytest
import torch

from interpret.errors import InputError, UnsupportedModelError
from interpret.sweep import Cell, Knockout, Metric, run_sweep
from reference.kinds import ATTENDING, FURTHER, KINDS, MORE_KINDS, WHOLE, L
from reference.knockouts import knocked_out
from reference.sweeps import ANSWER, MODELS, P, T, probability, runs
from reference.tiny import tiny_model

CLOSE = {"rtol": 1e-5, "atol": 1e-7}
LAST = T - 1
CELLS = [
    Cell("attention", token, *layers, knockout=Knockout(sources, heads))
    for token, layers, sources, heads in [
        (LAST, (0, L), (0, 1, 2), None),
        (LAST, (1, 3), (3,), None),
        (LAST, (2, 4), (LAST,), None),
        (LAST, (3, 4), (1, 2, 3, 4), None),
        (LAST, (1, 4), (0, 4), ((1, 0), (2, 1), (2, 3))),
        (3, (0, 2), (1, 2), None),
        (3, (1, 4), tuple(range(4)), None),  # left with nothing to attend to
        (2, (0, 3), tuple(range(3)), ((0, 2), (2, 1))),
        (0, (0, 1), (0,), None),
    ]
]


def heads_of(cell):
    """Return the heads that a cell knocks out in each layer, as the reference expects them."""
    layers = range(cell.start, cell.stop)
    if cell.knockout.heads is None:
        return dict.fromkeys(layers)
    chosen = {layer: [head for at, head in cell.knockout.heads if at == layer] for layer in layers}
    return {layer: heads for layer, heads in chosen.items() if heads}


def assert_knocked_out(model, run, cells, values):
    for cell, value in zip(cells, values, strict=True):
        logits = knocked_out(model, run, cell.token, cell.knockout.sources, heads_of(cell))
        torch.testing.assert_close(value, probability(logits), **CLOSE)


@pytest.mark.parametrize("kind", [*KINDS, *FURTHER])
def test_every_knockout_is_its_full_pass(kind):
    model = tiny_model(kind)
    run, _ = runs(model)
    found = run_sweep(model, run, run, CELLS, P)
    assert_knocked_out(model, run, CELLS, found.values["p"])
    changes = (found.values["p"] / found.base["p"] - 1).abs().amax(dim=1)
    # A window of 4 tokens may leave out all sources.
    assert (changes > 1e-4).sum() >= len(CELLS) - 2


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind in MORE_KINDS and kind not in ATTENDING])
@pytest.mark.filterwarnings("ignore:the family .* is described without its parts")
def test_every_knockout_in_whole_passes_is_one_by_edited_weights(kind):
    model = tiny_model(kind)
    run, _ = runs(model)
    cells = [cell for cell in CELLS if cell.knockout.heads is None and len(cell.knockout.sources) <= cell.token]
    found = run_sweep(model, run, run, cells, P)
    assert_knocked_out(model, run, cells, found.values["p"])
    assert ((found.values["p"] / found.base["p"] - 1).abs().amax(dim=1) > 1e-4).all()


@pytest.mark.filterwarnings("ignore:the family .* is described without its parts")
@pytest.mark.parametrize(
    ("number", "masked", "message"),
    [
        (4, ("eager", "sdpa"), "so attention cannot be knocked out in single heads; leave out the heads"),
        (6, ("eager", "sdpa"), "so a token cannot be left with nothing to attend to; leave out one of the tokens 0 to"),
        (0, (), "takes no mask of single tokens; open the model with 'eager' or 'sdpa'"),
    ],
)
def test_what_masks_cannot_do_is_refused(number, masked, message, monkeypatch):
    monkeypatch.setattr("interpret.sweep.whole_passes.MASKED", masked)
    model = tiny_model("bloom")
    run, _ = runs(model)
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        run_sweep(model, run, run, [CELLS[number]], P)


@pytest.mark.filterwarnings("ignore:the family .* is described without its parts")
@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind in MORE_KINDS and kind in ATTENDING])
def test_layers_without_attention_are_refused(kind):
    model = tiny_model(kind)
    run, _ = runs(model)
    message = f"of this {model.config.model_type!r} model has no attention that could be knocked out"
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        run_sweep(model, run, run, CELLS[:1], P)


def test_small_batches_give_the_same_knockouts():
    run, _ = runs(MODELS["mistral"])
    for memory in (1, 60_000):
        found = run_sweep(MODELS["mistral"], run, run, CELLS, P, memory=memory)
        assert_knocked_out(tiny_model("mistral"), run, CELLS, found.values["p"])


def test_knockouts_and_restorations_share_a_sweep():
    base, donor = runs(MODELS["llama"])
    cells = [CELLS[0], Cell("attn_out", LAST, 1, 3), CELLS[4]]
    together = run_sweep(MODELS["llama"], base, donor, cells, P).values["p"]
    for cell, values in zip(cells, together, strict=True):
        torch.testing.assert_close(run_sweep(MODELS["llama"], base, donor, [cell], P).values["p"][0], values)
    assert_knocked_out(tiny_model("llama"), base, [CELLS[0], CELLS[4]], together[::2])


def test_nothing_knocked_out_runs_nothing_and_changes_nothing():
    run, _ = runs(MODELS["gpt2"])
    found = run_sweep(MODELS["gpt2"], run, run, [Cell("attention", LAST, 0, L, knockout=Knockout(()))], P)
    assert torch.equal(found.values["p"][0], found.base["p"])
    assert found.layer_tokens == 2 * len(run) * T * L


def test_a_knockout_costs_only_the_layers_from_its_window_on_and_the_tokens_from_its_own_on():
    run, _ = runs(MODELS["gpt2"])
    cell = Cell("attention", 4, 2, 4, knockout=Knockout((1,)))
    found = run_sweep(MODELS["gpt2"], run, run, [cell], P)
    own = found.layer_tokens - 2 * len(run) * T * L
    assert own == len(run) * 2  # layer 2 at the token itself, layer 3 at the last token, which is read


def test_heads_of_a_layer_add_up_where_the_model_is_linear():
    """In the last layer of a parallel model without a final norm, a logit is linear in the heads' outputs."""
    model = tiny_model("gptj")
    model.transformer.ln_f = torch.nn.Identity()
    run, _ = runs(model)
    cells = [
        Cell("attention", LAST, L - 1, L, knockout=Knockout((1, 2), heads))
        for heads in (None, *(((L - 1, head),) for head in range(4)))
    ]
    found = run_sweep(model, run, run, cells, {"logit": Metric("logit", (ANSWER,))})
    effects = found.values["logit"] - found.base["logit"]
    torch.testing.assert_close(effects[1:].sum(dim=0), effects[0], rtol=1e-4, atol=1e-4)
    assert effects[0].abs().min() > 1e-3


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("attention", 2, 0, 1), "give a knockout for the site attention, and for no other site"),
        (Cell("attn_out", 2, 0, 1, knockout=Knockout((1,))), "give a knockout for the site attention, and for no"),
        (
            Cell("attention", 2, 0, 1, knockout=Knockout((3,))),
            "token 2 does not attend to token 3; it attends to tokens 0 to 2",
        ),
        (
            Cell("attention", 2, 0, 1, knockout=Knockout((1,), ((0, 4),))),
            "head 4 of layer 0 does not exist; this model has layers 0 to 3, each with heads 0 to 3",
        ),
        (Cell("attention", 2, 2, 2, knockout=Knockout((1,))), "layers 2 to 1 do not exist; this model has layers 0"),
    ],
)
def test_an_invalid_knockout_is_refused(cell, message):
    run, _ = runs(MODELS["llama"])
    with pytest.raises(InputError, match=f"^{re.escape('cells[0]: ' + message)}"):
        run_sweep(MODELS["llama"], run, run, [cell], P)
