"""Single heads and neurons, traced exactly and estimated, against full passes and autograd of the stock model."""

import re

import numpy as np
import pytest
import torch

from interpret.errors import InputError, UnsupportedModelError
from interpret.sweep import Cell, Metric, first_order
from interpret.tracing import TraceSettings, trace_units
from interpret.tracing.calls import trace
from interpret.tracing.inputs import trace_inputs
from reference.kinds import KINDS, L
from reference.overlay import decoder_layers
from reference.sweeps import MODELS, runs
from reference.tiny import hooks_on, wide_model
from reference.toy_tokenizers import byte_level
from reference.tracing import MODULES, patched

TOKENIZER = byte_level()
PROMPT, SUBJECT = "The Eiffel Tower is in", "Eiffel Tower"
SETTINGS = TraceSettings(samples=2, metric="logit")
HEADS = 4
LOGIT = Metric("logit", (5,))


def traced(model, **options):
    return trace_units(model, TOKENIZER, PROMPT, SUBJECT, [7], settings=SETTINGS, **options)


def inputs_of(model):
    return trace_inputs(model, TOKENIZER, PROMPT, SUBJECT, [7], settings=SETTINGS, occurrence=None, counterfactual=None)


@pytest.mark.parametrize("site", ["heads", "neurons"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_exact_units_are_full_passes(kind, site):
    model = wide_model(kind)
    found, inputs = traced(model, site=site, top=12), inputs_of(model)
    assert (found.exact.sum(), found.positions[-1]) == (12, len(found.tokens) - 1)
    rows = found.top(4).to_dict("records")
    for row in rows:
        unit = {"token": row["token_idx"], "layers": [row["layer_idx"]], "unit": row["unit"]}
        logits = patched(model, inputs.corrupted, inputs.clean, site=site, **unit)
        expected = logits[:, -1, 7].double().mean().item() - found.low
        np.testing.assert_allclose(row["indirect_effect"], expected, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(row["share"], expected / (found.high - found.low), rtol=1e-3, atol=1e-6)
    sizes = [abs(row["indirect_effect"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1e-4
    assert hooks_on(model) == 0


def test_all_heads_are_run_by_default():
    found = traced(wide_model("llama"), tokens="subject,last")
    assert found.exact.all()
    assert found.effects.shape == (len(found.positions), L, HEADS)
    assert len(found.to_frame()) == found.effects.size


def gradients(model, run, site):
    """Return the derivative of the logit at each head or neuron, and its value, [L][S, T, width], by autograd."""
    name = MODULES[model.config.model_type][{"heads": 1, "neurons": 3}[site]]
    seen, handles = [], []
    for block in decoder_layers(model):
        hook = lambda module, args: seen.append(args[0].requires_grad_()) or (seen[-1],)  # noqa: E731
        handles.append(block.get_submodule(name).register_forward_pre_hook(hook))
    with torch.enable_grad():
        logit = model(inputs_embeds=run.clone().requires_grad_(), use_cache=False).logits[:, -1, 5].sum()
        slopes = torch.autograd.grad(logit, seen)
    for handle in handles:
        handle.remove()
    shape = (*run.shape[:2], -1)
    return [slope.view(shape) for slope in slopes], [value.detach().view(shape) for value in seen]


@pytest.mark.parametrize("site", ["heads", "neurons"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen3_moe"])
def test_estimates_of_units_are_those_of_autograd(kind, site):
    model = MODELS[kind]
    base, donor = runs(model)
    (slopes, here), (_, there) = gradients(model, base, site), gradients(model, donor, site)
    cells = [Cell(site, token, layer, layer + 1, unit) for token in (2, 5) for layer in (0, 3) for unit in (0, 3)]
    found = first_order(model, base, donor, cells, LOGIT).effects
    for cell, effect in zip(cells, found, strict=True):
        terms = (there[cell.start] - here[cell.start])[:, cell.token] * slopes[cell.start][:, cell.token]
        width = terms.shape[-1] // HEADS if site == "heads" else 1
        expected = terms[:, cell.unit * width : (cell.unit + 1) * width].sum(-1).double()
        torch.testing.assert_close(effect, expected, rtol=1e-3, atol=1e-6)


def test_the_units_of_an_exact_trace_are_estimated_elsewhere():
    model = wide_model("llama")
    some, every = traced(model, top=5), traced(model)
    np.testing.assert_allclose(some.effects[some.exact], every.effects[some.exact], rtol=1e-3, atol=1e-6)
    others = some.effects[~some.exact]
    assert np.abs(others).max() > 0
    assert not np.allclose(others, every.effects[~some.exact], rtol=1e-3)


def test_units_show_themselves():
    model = wide_model("llama")
    heads, neurons = traced(model), traced(model, site="neurons", top=7)
    (panel,) = heads.view().panels()
    for grid, effects in zip(panel.grids, heads.effects, strict=True):
        np.testing.assert_array_equal(grid.bands[0].values, effects.T)
    (panel,) = neurons.view().panels()
    (band,) = panel.grids[0].bands
    assert (~band.blank).sum() == 7
    best = neurons.top(1).iloc[0]
    assert band.rows[0].text == f"{best['layer_idx']}.{best['unit']}"
    assert np.nanmax(np.abs(np.where(band.blank, np.nan, band.values))) == abs(best["indirect_effect"])
    assert heads.figure().axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "head"}, "unknown site 'head'; did you mean 'heads'? Allowed: heads, neurons"),
        ({"top": 0}, "top is 0; give at least 1 of the heads to run"),
        ({"tokens": "40"}, "token 40 does not exist; there are tokens 0 to"),
    ],
)
def test_invalid_units_are_refused(options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        traced(wide_model("llama"), **options)


def test_one_prompt_is_not_traced_by_a_mediator_of_units():
    message = r"^mediator 'heads' restores single units, in runs \(interpret.tracing.run\); for one prompt, use "
    with pytest.raises(InputError, match=message):
        trace(wide_model("llama"), TOKENIZER, PROMPT, SUBJECT, mediator="heads")


@pytest.mark.filterwarnings("ignore:the family .* is described without its parts")
def test_a_family_without_parts_has_no_units():
    with pytest.raises(UnsupportedModelError, match="so a single head cannot be restored"):
        traced(wide_model("bloom"))
