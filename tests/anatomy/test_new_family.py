"""A new family, registered with the lines of docs/architecture.md, works like the families of the table."""

import dataclasses
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from interpret import attach, attribute, record, register_family
from interpret.anatomy import FAMILIES, Family, anatomy_of, longest_text
from interpret.control import answers
from interpret.engine.recording import record_run
from interpret.engine.trunk import check_trunk, trunk_of
from interpret.errors import UnsupportedModelError
from interpret.sweep import Cell, Metric, Pin, run_sweep
from reference.kinds import D, L, V
from reference.tiny import first
from reference.toy_tokenizers import byte_level

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
CELLS = [
    Cell("resid_post", 1, -1, 1),
    Cell("resid_post", 2, 1, 2, None, (Pin("mlp_out"),)),
    Cell("attn_out", 1, 0, 3),
    Cell("mlp_out", 2, 1, 3, None, (Pin("attn_out", "all"),)),
]
P = {"p": Metric("probability", (5,))}


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.normal_(std=0.2, generator=generator)
                if isinstance(module, nn.LayerNorm) and parameter is module.weight:
                    parameter.add_(1.0)
    return model.eval()


@pytest.fixture(autouse=True)
def _without_rows(monkeypatch):
    """Remove the rows of the families that the tests describe anew."""
    for name in ("persimmon", "bloom"):
        monkeypatch.delitem(FAMILIES, name)


@pytest.fixture
def persimmon():
    config = transformers.PersimmonConfig(
        vocab_size=V, hidden_size=D, intermediate_size=48, num_hidden_layers=L, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None, qk_layernorm=True,
    )  # fmt: skip
    return randomised(transformers.PersimmonForCausalLM(config))


@pytest.fixture
def described():
    """Run the document's lines; the family is removed after the test."""
    section = DOCUMENT.read_text().split("## Describing another family")[1]
    (block,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    lines = block.strip().splitlines()
    assert len(lines) <= 13
    assert len([line for line in lines if line.startswith("    ")]) <= 10
    known = dict(FAMILIES)
    exec(compile(block, str(DOCUMENT), "exec"), {})
    yield
    for name in FAMILIES.keys() - known.keys():
        del FAMILIES[name]


def test_before_it_is_described_the_error_shows_what_to_write_down(persimmon):
    with pytest.raises(UnsupportedModelError) as error:
        anatomy_of(persimmon)
    said = str(error.value)
    assert "PersimmonForCausalLM (model_type 'persimmon') is not of a supported family; interpret.anatomy.F" in said
    assert "Its layers are probably 'model.layers': 4 x PersimmonDecoderLayer with self_attn" in said
    assert "interpret.describe(model) finds the row of many such models; docs/architecture.md" in said


@torch.no_grad()
def test_the_documents_lines_are_enough_for_surgery_and_generation(persimmon, described):
    attach(persimmon)
    vector = torch.randn(1, 1, D, generator=torch.Generator().manual_seed(1))
    info = [{1: ([2], vector)}, None]
    states = persimmon.forward_interpret(IDS, insert_info=info, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[1][0, 2], vector[0, 0])
    cached, uncached = (
        persimmon.generate_interpret(IDS, insert_info=info, max_new_tokens=4, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, persimmon.generate(IDS, max_new_tokens=4, do_sample=False))


@torch.no_grad()
def test_the_documents_lines_are_enough_to_run_layers_part_by_part(persimmon, described):
    trunk = trunk_of(persimmon, IDS.shape[1])
    embeddings = trunk.embed(IDS)
    last = record_run(trunk.layers, trunk.enter(embeddings), ()).states[-1]
    torch.testing.assert_close(trunk.logits(last), persimmon(IDS).logits, rtol=0, atol=1e-4)
    check_trunk(persimmon, trunk, embeddings, last)


def two_runs(model):
    donor = model.get_input_embeddings()(IDS[:1]).detach()
    return donor + 0.5 * torch.randn(2, *donor.shape[1:], generator=torch.Generator().manual_seed(0)), donor


@torch.no_grad()
def restored(model, layers, base, donor, layer, token):
    """The probability after a pass in which one layer's output is the donor's at one token."""
    kept = []
    handle = layers[layer].register_forward_hook(lambda module, args, output: kept.append(first(output)))
    model(inputs_embeds=donor)
    handle.remove()

    def write(module, args, output):
        hidden = first(output).clone()
        hidden[:, token] = kept[0][:, token]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layers[layer].register_forward_hook(write)
    logits = model(inputs_embeds=base).logits
    handle.remove()
    return logits[:, -1].double().softmax(-1)[:, 5]


def test_its_sweeps_are_exact_with_parts_and_without(persimmon, described):
    base, donor = two_runs(persimmon)
    found = run_sweep(persimmon, base, donor, [*CELLS, Cell("resid_post", 1, 2, 3)], P).values["p"]
    expected = restored(persimmon, persimmon.model.layers, base, donor, 2, 1)
    torch.testing.assert_close(found[-1], expected, rtol=1e-5, atol=1e-9)
    register_family(dataclasses.replace(FAMILIES["persimmon"], parts=None))
    with pytest.warns(UserWarning, match="the family 'persimmon' is described without its parts"):
        whole = run_sweep(persimmon, base, donor, CELLS, P).values["p"]
    torch.testing.assert_close(found[:-1], whole, rtol=1e-5, atol=1e-9)


def test_a_family_that_cannot_be_taken_apart_is_swept_all_the_same(monkeypatch):
    """CodeGen packs queries, keys and values in its own way, so its row leaves out the parts."""
    config = transformers.CodeGenConfig(
        vocab_size=V, n_embd=D, n_layer=L, n_head=4, n_positions=64, rotary_dim=4, bos_token_id=1, eos_token_id=None
    )
    model = randomised(transformers.CodeGenForCausalLM(config))
    row = Family("codegen", "", "h", "attn", "mlp", "mlp", "ln_1", ("ln_f",), block="parallel")
    monkeypatch.setitem(FAMILIES, "codegen", row)
    base, donor = two_runs(model)
    with pytest.warns(UserWarning, match="each cell takes a whole forward pass"):
        found = run_sweep(model, base, donor, [Cell("resid_post", 1, 2, 3)], P).values["p"]
    expected = restored(model, model.transformer.h, base, donor, 2, 1)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-9)
    with record(model, ["resid_mid.1", "mlp_out.1", "resid_post.1"]) as seen, torch.no_grad():
        model(IDS)
    torch.testing.assert_close(seen["resid_mid.1"] + seen["mlp_out.1"], seen["resid_post.1"])
    warnings.simplefilter("ignore")
    with pytest.raises(UnsupportedModelError, match="the family 'codegen' is described without its parts"):
        trunk_of(model, 5)


@pytest.fixture
def bloom():
    """Return a model with relative positions, for which no text is too long."""
    config = transformers.BloomConfig(vocab_size=420, hidden_size=D, n_layer=L, n_head=4, pad_token_id=0)
    register_family(Family(
        "bloom", trunk="", layers="h", attention="self_attention", mlp_first="mlp.dense_h_to_4h",
        mlp_last="mlp.dense_4h_to_h", mlp_norm="post_attention_layernorm", final=("ln_f",),
    ))  # fmt: skip
    yield randomised(transformers.BloomForCausalLM(config))
    del FAMILIES["bloom"]


def test_a_family_may_have_no_longest_text(bloom):
    tokenizer, text = byte_level(), "The Eiffel Tower is in"
    assert longest_text(bloom) > 10**9
    (one,) = attribute(bloom, tokenizer, text, f"{text} the city").sequences
    ids = torch.tensor([one.token_ids[: one.start]])
    x = bloom.get_input_embeddings()(ids).detach().requires_grad_()
    value = bloom(inputs_embeds=x, use_cache=False).logits[0, -1].softmax(-1)[one.token_ids[one.start]]
    (slope,) = torch.autograd.grad(value, x)
    expected = (x * slope)[0].detach().numpy()
    np.testing.assert_allclose(one.scores[: one.start, 0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    (written,) = answers(bloom, tokenizer, [text])
    prompt = tokenizer(text, return_tensors="pt").input_ids
    ids = bloom.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
    assert written == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
