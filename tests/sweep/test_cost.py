"""How much a sweep computes, in total and at once."""

from contextlib import contextmanager

import pytest
import torch

from interpret.anatomy import check_logits
from interpret.sweep import Cell, Pin, exact, first_order, grid, run_sweep
from reference.kinds import L
from reference.overlay import decoder_layers
from reference.sweeps import CLOSE, MODELS, P, S, T, assert_exact, runs
from reference.tiny import tiny_model

# ----------------------------------------------------------------------------------------------- what it costs


@pytest.fixture(autouse=True, scope="module")
def checked():
    """The checks that are made once per model are not counted."""
    check_logits(MODELS["llama"])


@contextmanager
def counted(module):
    """Count the tokens that go through a module."""
    counts = []
    handle = module.register_forward_hook(lambda module, args, output: counts.append(output[..., 0].numel()))
    yield counts
    handle.remove()


def layer_calls(model, cells, base, donor):
    """Tokens through each layer's MLP in a sweep, beyond the recorded runs and the check against the model."""
    found = []
    for layer in decoder_layers(model):
        with counted(layer.mlp.down_proj) as counts:
            run_sweep(model, base, donor, cells, P)
        found.append(sum(counts) - (S + 1) * T - T)
    return found


def test_only_tokens_from_the_restored_one_on_are_computed():
    base, donor = runs(MODELS["llama"])
    # Starts in layer 1; layer 2 computes tokens 2 to 5, the last layer the last one.
    assert layer_calls(MODELS["llama"], [Cell("resid_post", 2, 1, 2)], base, donor) == [0, 0, S * 4, S]
    # The layer in which an MLP is restored computes one token; the MLP's own output is known there.
    assert layer_calls(MODELS["llama"], [Cell("attn_out", 2, 1, 2)], base, donor) == [0, S, S * 4, S]
    assert layer_calls(MODELS["llama"], [Cell("mlp_out", 2, 1, 2)], base, donor) == [0, 0, S * 4, S]
    # A severed MLP is not computed at its token.
    severed = Cell("resid_post", 2, 1, 2, None, (Pin("mlp_out"),))
    assert layer_calls(MODELS["llama"], [severed], base, donor) == [0, 0, S * 3, S]


def test_what_differs_nowhere_is_not_run():
    base, donor = runs(MODELS["llama"])
    nothing = [Cell("resid_post", 0, 1, 2), Cell("resid_post", 3, L - 1, L), Cell("mlp_out", 0, 0, L)]
    assert layer_calls(MODELS["llama"], nothing, base, donor) == [0] * L
    found = run_sweep(MODELS["llama"], base, donor, nothing, P)
    assert all(torch.equal(row, found.base["p"]) for row in found.values["p"])


def test_estimates_are_taken_back_to_the_first_difference_only():
    base, donor = runs(MODELS["llama"], corrupted=slice(4, 5))
    cells = [Cell("resid_post", token, 1, 2, None, pins) for token in range(T) for pins in ((), (Pin("mlp_out"),))]
    with counted(MODELS["llama"].model.layers[2].mlp.gate_proj) as counts:
        found = first_order(MODELS["llama"], base, donor, cells, P["p"])
    # The donor, the check, the base; then two tokens each, with nothing severed and with the MLP severed.
    assert counts == [T, T, S * T, S * 2, S * 2]
    assert found.effects[:8].eq(0).all()
    assert found.effects[8:].ne(0).all()


@pytest.mark.filterwarnings("ignore:the family 'bloom' is described without its parts")
def test_whole_passes_are_run_only_for_cells_with_an_effect():
    model = tiny_model("bloom")
    check_logits(model)
    base, donor = runs(model, corrupted=slice(4, 5))
    cells = [Cell("mlp_out", token, 0, 2, None, pins) for token in range(T) for pins in ((), (Pin("attn_out"),))]
    with counted(decoder_layers(model)[0].mlp.dense_4h_to_h) as counts:
        found = run_sweep(model, base, donor, cells, P)
    n_run = 4  # two cells at each of the last two tokens
    assert sum(counts) == (S + 1 + n_run * S) * T
    assert found.layer_tokens == sum(counts) * L
    assert all(torch.equal(row, found.base["p"]) for row in found.values["p"][:-n_run])
    assert_exact(model, base, donor, cells, found)


def test_each_layer_is_called_once_for_a_column():
    base, donor = runs(MODELS["llama"])
    cells = [cell for cell in grid("resid_post", n_tokens=T, n_layers=L) if cell.token in (1, 4)]
    with counted(MODELS["llama"].model.layers[2].mlp.down_proj) as counts:
        run_sweep(MODELS["llama"], base, donor, cells, P)
    assert counts == [S * T, T, T, 2 * S * 5, 2 * S * 2]  # base, donor, check, and one call per column for two cells


def test_the_count_of_layer_tokens_is_what_was_computed():
    model = MODELS["llama"]
    base, donor = runs(model)
    cells = [cell for site in ("resid_post", "attn_out") for cell in grid(site, n_tokens=T, n_layers=L)]
    total = 0
    for layer in decoder_layers(model):
        with counted(layer.mlp.down_proj) as counts:
            found = run_sweep(model, base, donor, cells, P)
        total += sum(counts) - T  # the check against the model's own pass
    assert found.layer_tokens == total


def test_only_positions_that_are_read_reach_the_head():
    base, donor = runs(MODELS["llama"])
    with counted(MODELS["llama"].lm_head) as counts:
        run_sweep(MODELS["llama"], base, donor, [Cell("resid_post", 2, 1, 2)], P)
    assert sum(counts) == S + 1 + S


# --------------------------------------------------------------------------------------------------- memory


def test_a_small_memory_gives_the_same_values():
    model = MODELS["gpt2"]
    base, donor = runs(model)
    cells = [cell for site in ("resid_post", "mlp_out") for cell in grid(site, n_tokens=T, n_layers=L, window=2)]
    free = run_sweep(model, base, donor, cells, P).values["p"]
    for memory in (1, 30_000, 300_000):
        torch.testing.assert_close(run_sweep(model, base, donor, cells, P, memory=memory).values["p"], free, **CLOSE)


def largest_job(model, base, donor, cells, memory, monkeypatch):
    sizes = []
    whole = exact.run_column

    def watched(layers, base, donor, column, **rest):
        sizes.append((len(column.cells), len(base.states[0]), rest["chunk"]))
        return whole(layers, base, donor, column, **rest)

    monkeypatch.setattr(exact, "run_column", watched)
    run_sweep(model, base, donor, cells, P, memory=memory)
    return tuple(max(size) for size in zip(*sizes, strict=True))


def test_memory_bounds_what_is_run_at_once(monkeypatch):
    base, donor = runs(MODELS["llama"])
    cells = grid("resid_post", n_tokens=T, n_layers=L)
    assert largest_job(MODELS["llama"], base, donor, cells, 1, monkeypatch) == (1, 1, 1)
    cells_at_once, samples, _ = largest_job(MODELS["llama"], base, donor, cells, None, monkeypatch)
    assert (cells_at_once, samples) == (L, S)


def test_no_layer_is_given_more_tokens_than_the_memory_holds(monkeypatch):
    monkeypatch.setattr(exact, "CPU_CHUNK", 40)
    base, donor = runs(MODELS["llama"])
    cells = grid("resid_post", n_tokens=T, n_layers=L, window=2) * 2
    with counted(MODELS["llama"].model.layers[2].mlp.down_proj) as counts:
        run_sweep(MODELS["llama"], base, donor, cells, P)
    assert max(counts) <= 40
    assert max(counts) > 20  # as many as fit go together


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_what_does_not_fit_is_halved_and_tried_again(monkeypatch, error):
    model = MODELS["llama"]
    base, donor = runs(model)
    cells = grid("resid_post", n_tokens=T, n_layers=L)
    expected = run_sweep(model, base, donor, cells, P).values["p"]
    whole, refused = exact.run_column, []

    def small_only(layers, base, donor, column, **rest):
        if len(column.cells) * len(base.states[0]) > 2:
            refused.append(column)
            raise error
        return whole(layers, base, donor, column, **rest)

    monkeypatch.setattr(exact, "run_column", small_only)
    torch.testing.assert_close(run_sweep(model, base, donor, cells, P).values["p"], expected, **CLOSE)
    assert refused


@pytest.mark.parametrize(
    ("error", "tried"),
    [(MemoryError(), [(2, 4), (1, 4), (1, 2), (1, 1)]), (RuntimeError("shapes do not fit"), [(2, 4)])],
)
def test_what_cannot_be_halved_or_is_another_error_is_raised(monkeypatch, error, tried):
    calls = []

    def refuse(layers, base, donor, column, **rest):
        calls.append((len(column.cells), len(base.states[0])))
        raise error

    monkeypatch.setattr(exact, "run_column", refuse)
    base, donor = runs(MODELS["llama"], n_samples=4)
    with pytest.raises(type(error)):
        run_sweep(MODELS["llama"], base, donor, [Cell("resid_post", 1, 0, 1), Cell("resid_post", 1, 1, 2)], P)
    assert calls == tried
