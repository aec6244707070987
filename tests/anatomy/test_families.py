"""Every family with the installed transformers: tests of each cell of the document's table of families.

Each test here is parametrised over all kinds of ``reference.kinds``; those the installed transformers cannot build are
skipped by the parametrisation, which says so. ``reference/families.py`` makes the document's table from it.
"""

import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers

from interpret.activations._record import record
from interpret.anatomy import FAMILIES, anatomy_of, has_neurons, logit_cap, logits_of, text_config
from interpret.engine.recording import record_run
from interpret.engine.trunk import check_trunk, trunk_of
from interpret.errors import InputError, UnsupportedModelError
from interpret.surgery.generation import attach
from interpret.sweep import Cell, Metric, Pin, run_sweep
from reference.families import COLUMNS, DOCUMENT, RELEASES, WITHOUT_CACHE, refused_by, with_tables
from reference.kinds import ALL_KINDS, ATTENDING, EXPERTS, KINDS, MORE_KINDS, NO_MLP, READ_PADDING, WHOLE, D, L, V
from reference.overlay import reference_forward, reference_greedy
from reference.tiny import eager, first, residual_scale, tiny_model
from reference.tracing import patched

FAILING = [name for name, kind in ALL_KINDS.items() if transformers.__version__ in kind.fails_in]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [20, 30, 40, 50, 60, 70, 80]])
CLOSE = {"rtol": 1e-5, "atol": 1e-9}
BUILT = KINDS | MORE_KINDS
_SKIP = pytest.mark.skip(reason=f"not part of transformers {transformers.__version__}")
EVERY_KIND = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in BUILT else _SKIP) for kind in ALL_KINDS]
)
ATTENTIONS = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def model_of(kind, attention=""):
    """A model of a kind, with the attention asked for where it has it."""
    model = tiny_model(kind)
    if attention == "sdpa" and getattr(model, "_supports_sdpa", False):
        model.config._attn_implementation = "sdpa"
    return eager(model) if attention == "eager" else model


def vectors(n_positions, seed=1):
    return 2 * torch.randn(1, n_positions, D, generator=torch.Generator().manual_seed(seed))


SHOWN_FROM = {"mamba": 1, "mamba2": 1, "falcon_mamba": 1}
"""The first layer whose input is in ``hidden_states``, for kinds that collect the outputs of layers."""
INFO = [
    {0: ([1], vectors(1)), 2: ([0, -1], vectors(2, 2)), "overlay_strength": 0.75},
    {1: ([0, -1], vectors(2, 3)), 3: ([1], vectors(1, 4)), "replacing_mode": "addition"},
]


def test_the_documents_tables_are_those_of_these_tests():
    assert with_tables(DOCUMENT.read_text()) == DOCUMENT.read_text(), "run: python tests/reference/families.py"
    for name in COLUMNS.values():
        (marked,) = [mark for mark in globals()[name].pytestmark if mark.args[:1] == ("kind",)]
        assert [parameter.values for parameter in marked.args[1]] == [(kind,) for kind in ALL_KINDS]


def test_kinds_are_skipped_where_the_release_lacks_them_and_nowhere_else():
    refused = {name for name, kind in ALL_KINDS.items() if refused_by(kind, transformers.__version__)}
    assert {name for name, kind in ALL_KINDS.items() if hasattr(transformers, kind.model)} - {"llama3"} == (
        (BUILT.keys() | refused | {*FAILING}) - {"llama3"}
    )
    assert transformers.__version__ in RELEASES


@pytest.mark.parametrize("kind", FAILING)
def test_what_fails_in_transformers_itself_still_does(kind):
    with pytest.raises(AttributeError):
        tiny_model(kind)(IDS)


@pytest.mark.matrix
@EVERY_KIND
@ATTENTIONS
@torch.no_grad()
def test_surgery_on_a_pass_is_the_reference_and_shown_in_hidden_states(kind, attention):
    model = attach(model_of(kind, attention))
    output = model.forward_interpret(IDS, insert_info=INFO, output_hidden_states=True)
    assert not torch.allclose(output.logits, model(IDS).logits, atol=1e-2)
    for row, info in enumerate(INFO):
        expected = reference_forward(model, IDS[row].tolist(), info)
        torch.testing.assert_close(output.logits[row], expected.logits, rtol=0, atol=1e-4)
        for layer in range(SHOWN_FROM.get(kind, 0), L):
            shown = output.hidden_states[layer - SHOWN_FROM.get(kind, 0)][row]
            torch.testing.assert_close(shown, expected.layer_inputs[layer], rtol=0, atol=1e-4)


@pytest.mark.matrix
@EVERY_KIND
@pytest.mark.parametrize("use_cache", [True, False])
def test_surgery_on_generation_is_the_reference(kind, use_cache):
    model = attach(model_of(kind))
    # Some caches of transformers 4.57 lose texts of fewer than four tokens, which is refused.
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [20, 30, 40, 50, 60, 70]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    if kind in READ_PADDING:
        with pytest.raises(InputError, match=r"^sample 0 is padded on the left, which changes what \w+ computes"):
            model.generate_interpret(ids, attention_mask=mask, insert_info=INFO, max_new_tokens=1, use_cache=False)
        ids, mask = ids[:, 2:], mask[:, 2:]
    if use_cache and (kind, transformers.__version__) in WITHOUT_CACHE:
        with pytest.raises(UnsupportedModelError, match=r"generate with a cache does not continue.* use_cache=False$"):
            model.generate_interpret(ids, insert_info=INFO, max_new_tokens=1)
        return
    ours = model.generate_interpret(
        ids, attention_mask=mask, insert_info=INFO, max_new_tokens=7, do_sample=False, use_cache=use_cache
    )
    for row, start in enumerate(mask.argmax(dim=1).tolist()):
        expected = reference_greedy(model, ids[row, start:].tolist(), INFO[row], 7)
        assert ours[row, start:].tolist() == expected


@pytest.mark.matrix
@EVERY_KIND
@ATTENTIONS
@torch.no_grad()
def test_layers_run_part_by_part_are_the_model(kind, attention):
    model = model_of(kind, attention)
    if kind in WHOLE:
        with pytest.raises(UnsupportedModelError, match=r"^the family '.*' is described without its parts"):
            trunk_of(model, IDS.shape[1])
        return
    trunk = trunk_of(model, IDS.shape[1])
    embeddings = trunk.embed(IDS)
    last = record_run(trunk.layers, trunk.enter(embeddings), ()).states[-1]
    torch.testing.assert_close(trunk.logits(last), model(IDS).logits, rtol=0, atol=2e-4)
    check_trunk(model, trunk, embeddings, last)


CELLS = [
    Cell("resid_post", 1, -1, 1),
    Cell("resid_post", 2, 0, 1),
    Cell("resid_post", 1, 1, 2, None, (Pin("attn_out"),)),
    Cell("resid_post", 2, 2, 3, None, (Pin("mlp_out", "all"),)),
    Cell("attn_out", 2, 0, 3),
    Cell("mlp_out", 1, 1, 3, None, (Pin("attn_out", "all"),)),
    Cell("mlp_out", 6, 2, 4),
]
UNITS = [Cell("heads", 1, 0, 3, 3), Cell("neurons", 2, 1, 3, 47)]


def two_runs(model):
    donor = model.get_input_embeddings()(IDS[:1]).detach()
    base = donor.repeat(2, 1, 1)
    base[:, 1:3] += 0.5 * torch.randn(base[:, 1:3].shape, generator=torch.Generator().manual_seed(0))
    return base, donor


def possible(kind, cell):
    """Whether the layers of a kind have what a cell restores and holds."""
    layers = {cell.site: range(max(cell.start, 0), cell.stop)} if cell.site != "resid_post" else {}
    for pin in cell.pins:
        layers[pin.site] = range(0 if pin.layers == "all" else cell.stop, L)
    attending = ATTENDING.get(kind, range(L))
    return set(layers.get("attn_out", ())) <= set(attending) and not ("mlp_out" in layers and kind in NO_MLP)


def assert_refused(model, base, donor, kind, cells, metric):
    """Cells that need attention or an MLP, in a layer that has none, are refused by name."""
    for cell in cells:
        if not possible(kind, cell):
            said = (
                r"^cells\[0\]: (layer \d of .* has no attention: in its place is|.* is described without|.* adds the)"
            )
            with pytest.raises(UnsupportedModelError, match=said):
                run_sweep(model, base, donor, [cell], metric)


def assert_exact(model, base, donor, cells, values):
    for cell, found in zip(cells, values, strict=True):
        restored = range(cell.start, cell.stop)
        pins = {
            pin.site: [
                layer
                for layer in (range(L) if pin.layers == "all" else range(cell.stop, L))
                if pin.site != cell.site or layer not in restored
            ]
            for pin in cell.pins
        }
        logits = patched(
            model, base, donor, site=cell.site, token=cell.token, layers=restored, unit=cell.unit, pins=pins
        )
        torch.testing.assert_close(found, logits[:, -1].double().softmax(-1)[:, 5], **CLOSE)


@pytest.mark.matrix
@EVERY_KIND
@ATTENTIONS
def test_sweeps_are_exact(kind, attention):
    model = model_of(kind, attention)
    base, donor = two_runs(model)
    cells = CELLS if kind in WHOLE else CELLS + UNITS
    metric = {"p": Metric("probability", (5,))}
    if kind in EXPERTS and not has_neurons(anatomy_of(model), 2):  # before transformers 5
        with pytest.raises(
            UnsupportedModelError, match=r"(whose weights are not held as|has no linear layer 'down_proj')"
        ):
            run_sweep(model, base, donor, cells, metric)
        cells = [cell for cell in cells if cell.site != "neurons"]
    with warnings.catch_warnings():
        if kind in WHOLE:
            warnings.filterwarnings("ignore", "the family .* is described without its parts")
        assert_refused(model, base, donor, kind, cells, metric)
        cells = [cell for cell in cells if possible(kind, cell)]
        found = run_sweep(model, base, donor, cells, metric)
    assert_exact(model, base, donor, cells, found.values["p"])


@EVERY_KIND
def test_sweeps_by_whole_passes_are_the_same(kind, monkeypatch):
    model = model_of(kind)
    name = text_config(model).model_type
    monkeypatch.setitem(FAMILIES, name, dataclasses.replace(FAMILIES[name], parts=None))
    base, donor = two_runs(model)
    metric = {"p": Metric("probability", (5,))}
    cells = [cell for cell in CELLS if possible(kind, cell)]
    with pytest.warns(UserWarning, match="described without its parts") as said:
        found = run_sweep(model, base, donor, cells, metric)
    assert len(said) == 1
    assert_exact(model, base, donor, cells, found.values["p"])
    warnings.simplefilter("ignore")
    with pytest.raises(UnsupportedModelError, match=r"^cells\[0\]: the family '.*' is described without its parts"):
        run_sweep(model, base, donor, UNITS, metric)


@EVERY_KIND
@torch.no_grad()
def test_recorded_halves_add_up(kind):
    model = model_of(kind)
    mixed = ["attn_out" if k in ATTENDING.get(kind, range(L)) else "mixer_out" for k in range(L)]
    names = [f"{site}.{k}" for k in range(L) for site in ("resid_pre", mixed[k], "resid_post")]
    if kind not in NO_MLP:
        names += [f"{site}.{k}" for k in range(L) for site in ("resid_mid", "mlp_out")]
    with record(model, names) as seen:
        model(IDS)
    if anatomy_of(model).block == "post_norm":
        return
    factor = residual_scale(model)
    for k in range(L):
        middle = seen[f"resid_pre.{k}"] + seen[f"{mixed[k]}.{k}"]
        if kind in NO_MLP:
            after = seen[f"resid_post.{k}"] - factor * mlp_of(model, k, middle)
            torch.testing.assert_close(middle, after)
            continue
        torch.testing.assert_close(middle, seen[f"resid_mid.{k}"])
        torch.testing.assert_close(seen[f"resid_mid.{k}"] + seen[f"mlp_out.{k}"], seen[f"resid_post.{k}"])


def mlp_of(model, layer, states):
    """What the MLP of a layer adds, where no single module writes it; 0 in layers without an MLP."""
    block = anatomy_of(model).layers[layer]
    if not hasattr(block, "block_sparse_moe"):
        return 0.0
    normed = block.post_attention_layernorm(states)
    return first(block.block_sparse_moe(normed)) + block.shared_mlp(normed)


def test_the_kinds_bend_scores_and_logits_and_see_windows():
    """Soft caps and windows have an effect in the tiny models, so the comparisons above test them."""
    assert {"llama", "gpt2"} <= set(KINDS)
    if "gemma2" not in KINDS:
        return
    long, late = torch.randint(1, V, (1, 12), generator=torch.Generator().manual_seed(0)), 11
    for kind in ("qwen2", "gemma2", "gemma3", "phi3"):
        model, other = tiny_model(kind), long.clone()
        other[0, 0] = (other[0, 0] + 1) % V
        seen = [first(layer_output(model, ids, 0))[0, late] for ids in (long, other)]
        assert torch.equal(*seen), f"{kind}: layer 0 sees 11 tokens back"
    for kind, setting in (("gemma2", "attn_logit_softcapping"), ("gemma2", "final_logit_softcapping")):
        model = eager(tiny_model(kind))
        with torch.no_grad():
            bent = model(long).logits
            setattr(model.config, setting, None if "final" in setting else 1e6)
            for layer in model.model.layers:
                layer.self_attn.attn_logit_softcapping = model.config.attn_logit_softcapping
            assert not torch.allclose(bent, model(long).logits, atol=1e-2)


@torch.no_grad()
def layer_output(model, ids, layer):
    kept = []
    handle = anatomy_of(model).layers[layer].register_forward_hook(lambda module, args, output: kept.append(output))
    model(ids)
    handle.remove()
    return kept[0]


def test_a_soft_cap_is_that_of_gemma2_on_any_release():
    """A stand-in for a model, because transformers 4.34.0 has no Gemma 2."""
    head = torch.nn.Linear(3, 5)
    config = SimpleNamespace(model_type="gemma2", final_logit_softcapping=8.0, is_encoder_decoder=False)
    base = SimpleNamespace(config=config)
    model = SimpleNamespace(config=config, base_model=base, get_output_embeddings=lambda: head)
    x = 20 * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = head(x)
        expected = 8 * torch.tanh(logits / 8)
        assert (logits - expected).abs().max() > 1
        torch.testing.assert_close(logits_of(model, x), expected)
    assert logit_cap(model) == 8
    config.model_type = "llama"
    assert logit_cap(model) is None
    assert torch.equal(logits_of(model, x), head(x))
