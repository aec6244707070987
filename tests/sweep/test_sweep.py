"""Sweeps on every family, compared with full forward passes and with known results; refused inputs."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from interpret.errors import InputError, UnsupportedModelError
from interpret.sweep import Cell, Metric, Pin, columns, first_order, grid, run_sweep, window_around
from reference.devices import DEVICES
from reference.kinds import KINDS, D, L
from reference.overlay import decoder_layers
from reference.sweeps import ANSWER, CLOSE, MODELS, P, S, T, assert_exact, brute_force, probability, runs
from reference.tiny import hooks_on, shallow_model, tiny_model
from reference.tracing import run


@pytest.fixture(params=["llama", "gpt2"])
def one_layer(request, monkeypatch):
    monkeypatch.setattr("reference.sweeps.L", 1)
    return shallow_model(request.param, 1)


# ------------------------------------------------------------------------------------------------- exactness

PINS = [Pin(site, layers) for site in ("attn_out", "mlp_out") for layers in ("later", "all")]


@st.composite
def random_column(draw):
    """Up to four cells of one token, site and pins, which a sweep runs together."""
    site = draw(st.sampled_from(["resid_post", "attn_out", "mlp_out", "heads", "neurons"]))
    token = draw(st.integers(0, T - 1))
    pins = tuple(draw(st.lists(st.sampled_from(PINS), max_size=2, unique_by=lambda pin: pin.site)))
    layer = st.integers(-1 if site == "resid_post" else 0, L)
    windows = st.lists(layer, min_size=2, max_size=2, unique=True).map(sorted)
    unit = {"heads": st.integers(0, 3), "neurons": st.integers(0, 47)}.get(site, st.none())
    return [
        Cell(site, token, start, stop, unit, pins)
        for (start, stop), unit in draw(st.lists(st.tuples(windows, unit), min_size=1, max_size=4))
    ]


@given(
    kind=st.sampled_from(list(KINDS)),
    random_columns=st.lists(random_column(), min_size=1, max_size=2),
    seed=st.integers(0, 9),
    samples=st.sampled_from([(1, 1), (3, 1), (2, 2)]),
    first=st.integers(0, T - 1),
    memory=st.sampled_from([None, 1, 60_000]),
    padding=st.integers(0, 2),
)
def test_every_sweep_is_its_forward_passes(kind, random_columns, seed, samples, first, memory, padding):
    model, cells = MODELS[kind], [cell for column in random_columns for cell in column]
    n_samples, n_donors = samples
    base, donor = runs(model, seed, n_samples=n_samples, n_donors=n_donors, corrupted=slice(first, first + 2))
    found = run_sweep(model, base, donor, cells, P, memory=memory)
    assert_exact(model, base, donor, cells, found, padding)
    torch.testing.assert_close(found.base["p"], probability(run(model, base, {})), **CLOSE)
    torch.testing.assert_close(found.donor["p"], probability(run(model, donor, {})), **CLOSE)


def test_a_whole_grid_is_its_forward_passes(family_model):
    base, donor = runs(family_model)
    cells = grid("resid_post", n_tokens=T, n_layers=L)
    assert_exact(family_model, base, donor, cells, run_sweep(family_model, base, donor, cells, P))


@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out", "heads", "neurons"])
@pytest.mark.parametrize("kind", ["llama", "gptj", "opt_post_norm"])
def test_each_site_alone_changes_the_run(kind, site):
    """The cells have an effect, so the comparisons above are not between unchanged runs."""
    model = MODELS[kind]
    base, donor = runs(model)
    unit = 1 if site in ("heads", "neurons") else None
    found = run_sweep(model, base, donor, [Cell(site, 2, 0, 3, unit)], P)
    assert (found.values["p"][0] / found.base["p"] - 1).abs().max() > 1e-4


@pytest.mark.parametrize("pin", PINS[::2], ids=lambda pin: pin.site)
def test_a_pin_changes_the_run(pin):
    base, donor = runs(MODELS["llama"])
    plain, pinned = (Cell("resid_post", 1, 0, 1, None, pins) for pins in ((), (pin,)))
    values = run_sweep(MODELS["llama"], base, donor, [plain, pinned], P).values["p"]
    assert (values[0] / values[1] - 1).abs().max() > 1e-3


def test_base_may_be_another_prompt_in_ids(family_model):
    base, donor = torch.tensor([[3, 9, 4, 8], [7, 7, 4, 8]]), torch.tensor([[3, 2, 4, 8]])
    cells = grid("mlp_out", n_tokens=4, n_layers=L, window=3)
    embed = family_model.get_input_embeddings()
    found = run_sweep(family_model, base, donor, cells, P)
    assert_exact(family_model, embed(base).detach(), embed(donor).detach(), cells, found)


def test_a_sliding_window_of_attention_is_respected():
    model = tiny_model("mistral")
    model.config.sliding_window = 2
    base, donor = runs(model)
    cells = grid("resid_post", n_tokens=T, n_layers=L)
    found = run_sweep(model, base, donor, cells, P)
    assert_exact(model, base, donor, cells, found)
    wide = run_sweep(MODELS["mistral"], base, donor, cells, P)
    assert not torch.allclose(found.values["p"], wide.values["p"])


@pytest.mark.parametrize("setting", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}])
def test_the_settings_of_gpt2s_attention_are_respected(setting):
    model = tiny_model("gpt2")
    model.config.update(setting)
    for block in model.transformer.h:
        for name, value in setting.items():
            setattr(block.attn, name, value)
    base, donor = runs(model)
    cells = grid("resid_post", n_tokens=T, n_layers=L)
    assert_exact(model, base, donor, cells, run_sweep(model, base, donor, cells, P))


@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_follows_the_model(device):
    model = tiny_model("llama").bfloat16()
    base, donor = runs(model)
    cells = grid("resid_post", n_tokens=T, n_layers=L)
    found = run_sweep(model.to(device), base, donor, cells, P)
    full = run_sweep(MODELS["llama"], base.float(), donor.float(), cells, P)
    assert found.values["p"].dtype == torch.float64
    torch.testing.assert_close(found.values["p"], full.values["p"], rtol=0.2, atol=2e-3)


# --------------------------------------------------------------------------------------- what must come out


def test_restoring_the_input_of_layer_0_of_a_one_token_subject_gives_the_clean_run(family_model):
    base, donor = runs(family_model, corrupted=slice(2, 3))
    found = run_sweep(family_model, base, donor, [Cell("resid_post", 2, -1, 0)], P)
    torch.testing.assert_close(found.values["p"][0], found.donor["p"].expand(S), **CLOSE)
    assert not torch.allclose(found.base["p"], found.donor["p"].expand(S), rtol=1e-2)


def test_restoring_the_last_state_gives_the_clean_run(family_model):
    base, donor = runs(family_model)
    found = run_sweep(family_model, base, donor, [Cell("resid_post", T - 1, L - 1, L)], P)
    torch.testing.assert_close(found.values["p"][0], found.donor["p"].expand(S), **CLOSE)


@pytest.mark.matrix
@pytest.mark.parametrize("pins", [(), (PINS[0],), (PINS[3],), (PINS[1], PINS[2])])
def test_pins_at_the_restored_runs_own_values_change_nothing(family_model, pins):
    base, _ = runs(family_model)
    donor = base.clone()
    donor[:, 0, ::2] += 1  # so that the later tokens' cells are run, though their embeddings are the same
    cells = [Cell("resid_post", token, -1, 0, None, pins) for token in range(1, T)]
    found = run_sweep(family_model, base, donor, cells, P)
    assert found.layer_tokens > 2 * S * T * L
    torch.testing.assert_close(found.values["p"], found.base["p"].expand(T - 1, S), **CLOSE)
    assert not torch.allclose(found.base["p"], found.donor["p"], rtol=1e-2)


@pytest.mark.matrix
@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out"])
def test_a_run_restored_from_itself_is_itself(family_model, site):
    base, _ = runs(family_model)
    found = run_sweep(family_model, base, base, grid(site, n_tokens=T, n_layers=L, window=2), P)
    assert all(torch.equal(row, found.base["p"]) for row in found.values["p"])


def test_neurons_of_a_linear_toy_add_up_to_the_mlp():
    """Without a final norm the last layer's MLP at the last token moves a logit linearly."""
    model = tiny_model("opt")
    model.model.decoder.final_layer_norm = None
    base, donor = runs(model)
    last = {"token": T - 1, "start": L - 1, "stop": L}
    cells = [Cell("mlp_out", **last), *(Cell("neurons", **last, unit=unit) for unit in range(48))]
    found = run_sweep(model, base, donor, cells, {"logit": Metric("logit", (ANSWER,))})
    effects = found.values["logit"] - found.base["logit"]
    torch.testing.assert_close(effects[1:].sum(dim=0), effects[0], rtol=1e-4, atol=1e-4)
    assert effects[0].abs().min() > 0.01


def test_heads_of_a_linear_toy_add_up_to_the_attention():
    model = tiny_model("gptj")  # parallel: the attention of the last layer goes to the output alone
    model.transformer.ln_f = nn.Identity()
    base, donor = runs(model)
    last = {"token": T - 1, "start": L - 1, "stop": L}
    cells = [Cell("attn_out", **last), *(Cell("heads", **last, unit=unit) for unit in range(4))]
    found = run_sweep(model, base, donor, cells, {"logit": Metric("logit", (ANSWER,))})
    effects = found.values["logit"] - found.base["logit"]
    torch.testing.assert_close(effects[1:].sum(dim=0), effects[0], rtol=1e-4, atol=1e-4)
    assert effects[0].abs().min() > 0.01


def test_windows_are_romes():
    assert [window_around(layer, 10, 4) for layer in range(4)] == [(0, 4)] * 4
    assert [window_around(layer, 3, 4) for layer in range(4)] == [(0, 2), (0, 3), (1, 4), (2, 4)]
    assert window_around(20, 10, 30) == (15, 25)


# -------------------------------------------------------------------------------------------------- metrics


def test_several_metrics_are_read_in_one_sweep(family_model):
    base, donor = runs(family_model)
    cells = grid("resid_post", n_tokens=T, n_layers=L)[6:12]
    metrics = {
        "p": Metric("probability", (ANSWER,)),
        "log p": Metric("log_probability", (ANSWER,)),
        "logit": Metric("logit", (ANSWER,)),
        "difference": Metric("logit_difference", (ANSWER,), (7,)),
        "rank": Metric("rank", (ANSWER,)),
    }
    found = run_sweep(family_model, base, donor, cells, metrics)
    for index, cell in enumerate(cells):
        logits = brute_force(family_model, base, donor, cell)[:, -1].double()
        expected = {
            "p": logits.softmax(-1)[:, ANSWER],
            "log p": logits.log_softmax(-1)[:, ANSWER],
            "logit": logits[:, ANSWER],
            "difference": logits[:, ANSWER] - logits[:, 7],
            "rank": 1 + (logits > logits[:, [ANSWER]]).sum(-1).double(),
        }
        for name in metrics:
            torch.testing.assert_close(found.values[name][index], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_an_answer_of_several_tokens_is_read_at_several_positions(kind):
    model, answer = MODELS[kind], (5, 8, 3)
    ids = torch.tensor([[10, 11, 12, 13, *answer[:-1]]])
    donor = model.get_input_embeddings()(ids).detach()
    base = donor.repeat(2, 1, 1)
    base[:, 1] += torch.randn(2, base.shape[-1], generator=torch.Generator().manual_seed(1))
    cells = [cell for site in ("resid_post", "attn_out") for cell in grid(site, n_tokens=6, n_layers=L)]
    metrics = {"p": Metric("probability", answer), "last": Metric("log_probability", answer[-1:])}
    found = run_sweep(model, base, donor, cells, metrics)
    for index, cell in enumerate(cells):
        logs = brute_force(model, base, donor, cell)[:, -3:].double().log_softmax(-1)
        steps = logs.gather(-1, torch.tensor(answer).expand(2, 3)[..., None])[..., 0]
        torch.testing.assert_close(found.values["p"][index], steps.sum(-1).exp(), **CLOSE)
        torch.testing.assert_close(found.values["last"][index], steps[:, -1], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------- bad input

GOOD = Cell("resid_post", 1, 0, 1)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            Cell("resid_pst", 1, 0, 1),
            "unknown site 'resid_pst'; did you mean 'resid_post'? "
            "Allowed: resid_post, attn_out, mixer_out, mlp_out, heads, neurons, attention",
        ),
        (Cell("resid_post", 6, 0, 1), "token 6 does not exist; this prompt has tokens 0 to 5"),
        (Cell("resid_post", -1, 0, 1), "token -1 does not exist; this prompt has tokens 0 to 5"),
        (Cell("mlp_out", 1, -1, 1), "layers -1 to 0 do not exist; this model has layers 0 to 3"),
        (Cell("resid_post", 1, 2, 5), "layers 2 to 4 do not exist; this model has layers 0 to 3"),
        (Cell("resid_post", 1, 2, 2), "layers 2 to 1 do not exist; this model has layers 0 to 3"),
        (Cell("heads", 1, 0, 1), "head None does not exist; a layer has heads 0 to 3"),
        (Cell("heads", 1, 0, 1, 4), "head 4 does not exist; a layer has heads 0 to 3"),
        (Cell("neurons", 1, 0, 1, 48), "neuron 48 does not exist; a layer has neurons 0 to 47"),
        (Cell("mlp_out", 1, 0, 1, 2), "site mlp_out has no units; leave out unit=2"),
        (
            Cell("resid_post", 1, 0, 1, None, (Pin("heads"),)),
            "unknown site of a pin 'heads'; Allowed: attn_out, mlp_out",
        ),
        (
            Cell("resid_post", 1, 0, 1, None, (Pin("mlp_out", "latter"),)),
            "unknown layers of a pin 'latter'; did you mean 'later'? Allowed: later, all",
        ),
    ],
)
def test_a_cell_that_does_not_exist_is_refused_by_index(cell, message):
    base, donor = runs(MODELS["llama"])
    with pytest.raises(InputError, match=f"^{re.escape(f'cells[1]: {message}')}$"):
        run_sweep(MODELS["llama"], base, donor, [GOOD, cell], P)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            Metric("probabilty", (1,)),
            "unknown kind 'probabilty'; did you mean 'probability'? "
            "Allowed: probability, log_probability, logit, logit_difference, rank",
        ),
        (Metric("logit", ()), "the answer has no tokens"),
        (Metric("logit", (1,) * 7), "an answer of 7 tokens cannot be read from runs of 6 tokens"),
        (Metric("rank", (1, 2)), "the answer has 2 tokens; a rank is of a single token"),
        (Metric("logit", (1,), (2,)), "give a foil for logit_difference, and for no other kind"),
        (Metric("logit_difference", (1,)), "give a foil for logit_difference, and for no other kind"),
        (Metric("logit_difference", (1,), (2, 3)), "the foil has 2 tokens, the answer 1; give the same number"),
        (Metric("logit", (97,)), "token id 97 does not exist; the vocabulary has ids 0 to 96"),
        (Metric("logit_difference", (1,), (-1,)), "token id -1 does not exist; the vocabulary has ids 0 to 96"),
    ],
)
def test_a_metric_that_cannot_be_read_is_refused_by_name(metric, message):
    base, donor = runs(MODELS["llama"])
    message = f"metrics['m']: {message}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run_sweep(MODELS["llama"], base, donor, [GOOD], {"m": metric})


def test_a_sweep_without_metrics_is_refused():
    with pytest.raises(InputError, match=r"^a sweep needs at least one metric$"):
        run_sweep(MODELS["llama"], *runs(MODELS["llama"]), [GOOD], {})


def test_a_donor_of_another_length_is_refused():
    message = "the donor has 3 tokens, the base 4: values are restored token by token, so both need the same length"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run_sweep(MODELS["llama"], torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3]]), [GOOD], P)


def test_donors_that_are_neither_one_nor_as_many_are_refused():
    message = "the donor has 2 rows, the base 3; give one donor row per base row, or one for all"
    with pytest.raises(InputError, match=f"^{message}$"):
        run_sweep(MODELS["llama"], torch.ones(3, 4).long(), torch.ones(2, 4).long(), [GOOD], P)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3, 4)])
def test_runs_of_the_wrong_shape_are_refused(shape):
    message = (
        f"base has shape {shape} and dtype torch.int64; "
        "give token ids [samples, tokens] or word embeddings [samples, tokens, width]"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run_sweep(MODELS["llama"], torch.ones(shape).long(), torch.ones(1, 4).long(), [GOOD], P)


def test_training_mode_is_refused(llama):
    llama.train()
    message = "the model is in training mode, in which dropout makes every run different; call model.eval()"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run_sweep(llama, *runs(llama), [GOOD], P)
    llama.eval()


def test_a_model_that_computes_otherwise_is_refused(family_model):
    handle = decoder_layers(family_model)[1].register_forward_hook(
        lambda module, args, output: (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5
    )
    name, family = type(family_model).__name__, family_model.config.model_type
    message = (
        f"{name} does not compute what other {family} models do: running its layers part by part gives a state of "
        "NUMBER, where the model's own is NUMBER. A hook on layers[1] changes what it computes: remove it"
    )
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message).replace('NUMBER', '[-+.e0-9]+')}$"):
        run_sweep(family_model, *runs(family_model), [GOOD], P)
    handle.remove()


def test_no_hook_and_no_graph_is_left_also_when_the_sweep_raises(family_model, monkeypatch):
    found = run_sweep(family_model, *runs(family_model), [GOOD], P)
    assert not found.values["p"].requires_grad
    assert hooks_on(family_model) == 0
    monkeypatch.setattr(columns, "run_layer", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_sweep(family_model, *runs(family_model), [Cell("mlp_out", 1, 0, 1)], P)
    assert hooks_on(family_model) == 0


def test_runs_are_left_as_they_were(family_model):
    base, donor = runs(family_model)
    before = base.clone(), donor.clone()
    run_sweep(family_model, base, donor, grid("resid_post", n_tokens=T, n_layers=L, window=2), P)
    assert torch.equal(base, before[0])
    assert torch.equal(donor, before[1])
    assert base.shape[-1] in (D, 16)


def test_a_model_of_one_layer_is_swept_exactly(one_layer):
    """Its only layer is the first and the last."""
    base, donor = runs(one_layer)
    pins = [(), (Pin("attn_out", "all"),), (Pin("mlp_out", "all"),)]
    places = [(token, start) for token in range(T) for start in (-1, 0)]
    cells = [Cell("resid_post", token, start, start + 1, None, held) for token, start in places for held in pins]
    cells += [Cell(site, token, 0, 1) for token in range(T) for site in ("attn_out", "mlp_out")]
    found = run_sweep(one_layer, base, donor, cells, P)
    assert_exact(one_layer, base, donor, cells, found)
    estimable = [cell for cell in cells if cell.start == 0]
    assert first_order(one_layer, base, donor, estimable, P["p"]).effects.shape == (len(estimable), S)


def test_estimates_of_a_model_of_one_layer_are_the_derivative(one_layer):
    base, _ = runs(one_layer)
    direction = torch.randn(base.shape, generator=torch.Generator().manual_seed(2))
    donor = base + 1e-3 * direction
    cells = [Cell(site, token, 0, 1) for site in ("resid_post", "attn_out", "mlp_out") for token in range(T)]
    exact = run_sweep(one_layer, base, donor, cells, P)
    estimate = first_order(one_layer, base, donor, cells, P["p"])
    changes = exact.values["p"] - exact.base["p"]
    torch.testing.assert_close(estimate.effects, changes, rtol=0.05, atol=2e-2 * changes.abs().max().item())
    assert changes.abs().max() > 0
