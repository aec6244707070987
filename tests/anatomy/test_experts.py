"""The neurons of mixtures of experts: values, edits and traces, against an MLP in which every expert runs."""

import re

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from interpret.activations import record
from interpret.anatomy import NeuronNumbers, anatomy_of, check_insides, neuron_numbers
from interpret.anatomy.changes import Changes
from interpret.anatomy.neurons import hook_neurons
from interpret.errors import InputError, UnsupportedModelError
from interpret.facts.files import Fact
from interpret.probing import KnowledgeProber, expert_of, neuron_of, top_activating
from interpret.probing.neurons import count_neurons, neuron_values, reading_weights, scaled_neuron
from interpret.sweep import Cell, Metric, first_order, run_sweep
from interpret.tracing import TraceSettings, trace_units
from interpret.tracing.units import unit_cells
from reference.kinds import EXPERTS, KINDS, MORE_KINDS, L
from reference.mixtures import input_weights, mlp_of
from reference.overlay import decoder_layers
from reference.tiny import hooks_on, tiny_model, wide_model
from reference.toy_tokenizers import byte_level
from reference.tracing import hooked, patched, recorded, run

WHOLE_EXPERTS = ("hunyuan_moe", "deepseek_v2", "deepseek_v3", "llama4", "jamba", "qwen3_next", "lfm2_moe")
"""Kinds with experts whose layers are run in whole passes."""
ALL = [kind for kind in (*EXPERTS, *WHOLE_EXPERTS) if kind in KINDS | MORE_KINDS]
pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith("5"), reason="experts are modules of their own before transformers 5"
)
LIKE_MIXTRAL = [kind for kind in ALL if kind in EXPERTS]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WORDS = byte_level()
P = {"p": Metric("probability", (5,))}


def embeddings_of(model, ids=IDS):
    return model.get_input_embeddings()(ids).detach()


def precise(kind):
    """Return a model in double precision, which only the eager experts take."""
    model = tiny_model(kind).double()
    model.config.get_text_config()._experts_implementation = "eager"
    return model


def two_runs(model):
    donor = embeddings_of(model, IDS[:1])
    base = donor.repeat(2, 1, 1)
    base[:, 1:3] += 0.5 * torch.randn(base[:, 1:3].shape, generator=torch.Generator().manual_seed(0))
    return base, donor


def cells_that_matter(model, base, donor, per_layer=2):
    """Return neurons that differ in the two runs: of each layer, those whose difference is largest."""
    here, there = (recorded(model, embeddings, ["neurons"]) for embeddings in (base, donor))
    cells = []
    for layer in range(L):
        sizes = (there[layer, "neurons"] - here[layer, "neurons"])[0, 2].abs()
        cells += [Cell("neurons", 2, layer, layer + 1, unit) for unit in sizes.topk(per_layer).indices.tolist()]
    return cells


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_values_are_those_of_an_mlp_in_which_every_expert_runs(kind):
    model = tiny_model(kind)
    names = [f"neurons.{layer}" for layer in range(L)]
    own = model(IDS).logits
    with record(model, names) as seen:
        assert torch.equal(model(IDS).logits, own)
    expected = recorded(model, embeddings_of(model), ["neurons"])
    for layer, name in enumerate(names):
        torch.testing.assert_close(seen[name], expected[layer, "neurons"], **CLOSE)
        numbers = neuron_numbers(anatomy_of(model), layer)
        assert seen[name].shape[-1] == numbers.count == count_neurons(model, layer)
        of_experts = seen[name][..., : numbers.experts * numbers.each]
        if numbers.experts:
            silent = (of_experts.unflatten(-1, (numbers.experts, -1)) == 0).all(dim=-1).sum(dim=-1)
            top_k = mlp_of(decoder_layers(model)[layer])
            picked = getattr(top_k, "top_k", None) or model.config.get_text_config().num_experts_per_tok
            assert (silent == numbers.experts - picked).all()
    assert hooks_on(model) == 0


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.filterwarnings("ignore:the family .* is described without its parts")
def test_restored_neurons_are_full_passes(kind):
    model = tiny_model(kind)
    base, donor = two_runs(model)
    cells = [*cells_that_matter(model, base, donor), Cell("neurons", 1, 1, 3, 7)]
    found = run_sweep(model, base, donor, cells, P).values["p"]
    plain = run(model, base, {})[:, -1].double().softmax(-1)[:, 5]
    for cell, value in zip(cells, found, strict=True):
        layers = range(cell.start, cell.stop)
        logits = patched(model, base, donor, site="neurons", token=cell.token, layers=layers, unit=cell.unit)
        torch.testing.assert_close(value, logits[:, -1].double().softmax(-1)[:, 5], rtol=1e-4, atol=1e-9)
    assert ((found - plain).abs() > 1e-7).any(dim=1).sum() > L


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.further) for kind in LIKE_MIXTRAL])
def test_estimates_are_those_of_autograd(kind):
    model = precise(kind)
    base, donor = two_runs(model)
    cells = cells_that_matter(model, base, donor)
    found = first_order(model, base, donor, cells, Metric("logit", (5,))).effects
    here, there = (recorded(model, embeddings, ["neurons"]) for embeddings in (base, donor))
    for cell, effect in zip(cells, found, strict=True):
        at = cell.start, "neurons"
        terms = (there[at] - here[at])[:, 2, cell.unit] * slope_at(model, base, cell.start)[:, 2, cell.unit]
        torch.testing.assert_close(effect, terms, rtol=1e-4, atol=1e-7)  # routers use float32


def slope_at(model, base, layer):
    """Return the derivative of the logit at the neurons of a layer, [S, T, U], by the slow MLP."""
    leaves = []
    handle = hooked(
        model, layer, "neurons", lambda value: leaves.append(value.detach().requires_grad_()) or leaves[0], len(base)
    )
    logit = model(inputs_embeds=base, use_cache=False).logits[:, -1, 5].sum()
    handle.remove()
    return torch.autograd.grad(logit, leaves)[0]


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_an_ablated_neuron_is_gone(kind):
    model = tiny_model(kind)
    layer = L - 1
    value = recorded(model, embeddings_of(model), ["neurons"])[layer, "neurons"]  # [2, T, U]
    largest = int(value.abs().amax(dim=(0, 1)).argmax())

    def without(values):
        values = values.clone()
        values[..., largest] = 0
        return values

    expected = run(model, embeddings_of(model), {(layer, "neurons"): without})
    with scaled_neuron(model, (layer, largest), 0.0), record(model, [f"neurons.{layer}"]) as seen:
        found = model(IDS).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, model(IDS).logits, rtol=1e-3)
    assert (seen[f"neurons.{layer}"][..., largest] == 0).all()


@torch.no_grad()
def test_a_neuron_whose_expert_was_not_picked_changes_nothing():
    model = tiny_model("mixtral")
    value = recorded(model, embeddings_of(model, IDS[:1, :1]), ["neurons"])[2, "neurons"][0, 0]
    silent, own = (value == 0).nonzero()[0].item(), model(IDS[:1, :1]).logits
    with scaled_neuron(model, (2, silent), 5.0):
        assert torch.equal(model(IDS[:1, :1]).logits, own)


@torch.no_grad()
def test_edited_neurons_are_read_edited_by_all_hooks_whatever_their_order():
    model = tiny_model("qwen2_moe")
    anatomy, seen = anatomy_of(model), []

    def read(values):
        seen.append(values[..., 3].clone())

    with Changes() as change, change:
        hook_neurons(change, anatomy, 1, read)
        with scaled_neuron(model, (1, 3), 0.0), record(model, ["resid_mid.1", "mlp_out.1", "resid_post.1"]) as parts:
            model(IDS)
    assert (seen[0] == 0).all()
    torch.testing.assert_close(parts["resid_mid.1"] + parts["mlp_out.1"], parts["resid_post.1"])


def test_recorded_neurons_are_part_of_the_graph():
    model = precise("gpt_oss")
    with record(model, ["neurons.1"]) as seen:
        logit = model(IDS).logits[:, -1, 5].sum()
    (slope,) = torch.autograd.grad(logit, seen["neurons.1"])
    torch.testing.assert_close(slope, slope_at(model, embeddings_of(model), 1))


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen2_moe", "glm4_moe"])
def test_gradients_of_the_input_are_the_models_own(kind):
    model = precise(kind)
    slopes = []
    for names in ([], [f"neurons.{layer}" for layer in range(L)]):
        embeddings = embeddings_of(model).requires_grad_()
        with record(model, names):
            logit = model(inputs_embeds=embeddings, use_cache=False).logits[:, -1, 5].sum()
        slopes += torch.autograd.grad(logit, embeddings)
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen2_moe", "qwen3_moe"])
def test_input_weights_are_unit_vectors_of_up_and_gate(kind):
    model = tiny_model(kind)
    found, mlp = reading_weights(model, 2), mlp_of(decoder_layers(model)[2])
    packed = input_weights(mlp.experts).transpose(1, 2)  # [E, 2 F, D]
    gates, ups = (packed[:, ::2], packed[:, 1::2]) if kind == "gpt_oss" else packed.chunk(2, dim=1)
    rows = [(up, gate) for up, gate in zip(ups.flatten(0, 1), gates.flatten(0, 1), strict=True)]
    if kind == "qwen2_moe":
        rows += zip(mlp.shared_expert.up_proj.weight, mlp.shared_expert.gate_proj.weight, strict=True)
    assert len(rows) == len(found)
    for row, parts in zip(found, rows, strict=True):
        torch.testing.assert_close(row, torch.cat([part / part.norm() for part in parts]).detach() / 2**0.5)


def test_analyses_of_neurons_take_experts():
    model = wide_model("qwen2_moe")
    pairs = [("Paris is big", "Paris is old"), ("Rome is big", "Rome is old"), ("Oslo is big", "Oslo is old")]
    texts = [text for pair in pairs for text in pair]
    values = neuron_values(model, WORDS, texts, [1])[1]
    effects = KnowledgeProber(model, WORDS).scan(pairs, [1], n_permutations=7, progress=False)
    assert len(effects) == values.shape[1] == 120
    for effect in effects[:5]:
        np.testing.assert_allclose(effect.true_mean, values[::2, effect.neuron].mean().item(), rtol=1e-5)
    neuron = int(values.abs().amax(dim=0).argmax())
    (best,) = top_activating(model, WORDS, texts, [(1, neuron)], k=1)
    assert best.activation >= values[:, neuron].max().item() - 1e-6
    assert KnowledgeProber(model, WORDS).polysemantic_score(1, k_neighbors=5).shape == (120,)


def test_units_of_traces_are_numbered_by_expert():
    model = wide_model("glm4_moe")  # its first layer has no experts, and fewer neurons
    settings = TraceSettings(samples=2, metric="logit")
    prompt, subject = "The Eiffel Tower is in", "Eiffel Tower"
    found = trace_units(model, WORDS, prompt, subject, [7], site="neurons", top=12, settings=settings, progress=False)
    assert found.effects.shape[1:] == (L, 120)
    assert np.isnan(found.effects[:, 0, 48:]).all()
    assert np.isfinite(found.effects[found.exist]).all()
    table = found.to_frame()
    assert len(table) == len(found.positions) * (48 + 3 * 120)
    assert set(table[table["layer_idx"] == 0]["expert"]) == {""}
    assert set(table[table["layer_idx"] == 1]["expert"]) == {"0", "1", "2", "3", "shared"}
    rows = unit_cells(Fact(name="f", prompt=prompt, subject=subject, attribute="x"), found)
    assert len(rows) == 12
    for row in rows:
        assert row.expert == expert_of(model, row.layer_idx, row.unit)[0]
    (panel,) = found.view().panels()
    best = rows[int(np.argmax([abs(row.indirect_effect) for row in rows]))]
    assert panel.grids[0].bands[0].rows[0].text == f"{best.layer_idx}.{best.unit}"


def test_numbers_of_neurons():
    numbers = NeuronNumbers(experts=4, each=10, others=20)
    for number in range(numbers.count):
        assert numbers.number(*numbers.place(number)) == number
    assert NeuronNumbers(0, 0, 20).number("", 3) == 3
    for call, message in (
        (lambda: numbers.number(4, 0), "expert 4 does not exist; this layer has the experts 0, 1, 2, 3, shared"),
        (lambda: numbers.number(1, 10), "neuron 10 does not exist; this expert has neurons 0 to 9"),
        (lambda: NeuronNumbers(0, 0, 20).number(1, 0), "expert 1 does not exist; this layer has no experts"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            call()
    model = tiny_model("qwen2_moe")
    assert neuron_of(model, 1, "shared", 2) == 98
    assert expert_of(model, 1, 98) == ("shared", 2)
    with pytest.raises(InputError, match="^neuron 120 does not exist; layer 1 has neurons 0 to 119"):
        expert_of(model, 1, 120)


def test_experts_that_compute_something_else_are_refused():
    model = tiny_model("mixtral")
    experts = mlp_of(decoder_layers(model)[2]).experts
    stock = experts.forward
    experts.__class__ = type("Scaled", (type(experts),), {"forward": lambda self, *routed: 1.01 * stock(*routed)})
    with pytest.raises(UnsupportedModelError, match="in layer 2, what the neurons of its experts write is"):
        check_insides(model)


def test_experts_that_are_modules_of_their_own_are_refused():
    model = wide_model("mixtral")
    mlp_of(decoder_layers(model)[1]).experts = nn.ModuleList([nn.Linear(32, 32)])
    with pytest.raises(UnsupportedModelError, match="^the MLP of layer 1 of MixtralModel is a mixture"):
        count_neurons(model, 1)
    with pytest.raises(UnsupportedModelError, match="^the MLP of layer 1 of MixtralModel is a mixture"):
        trace_units(model, WORDS, "The Eiffel Tower is in", "Eiffel", [7], site="neurons", progress=False)
