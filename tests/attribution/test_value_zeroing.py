"""Value zeroing, compared with the model's own passes, in which hooks zero the values of a token in one layer."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from interpret import InputError, UnsupportedModelError
from interpret.attribution.methods.value_zeroing import value_zeroing
from interpret.attribution.runs import run
from interpret.prompts.prompts import Prompt
from reference import tiny
from reference.masking import IDS, steps_of
from reference.plain_attribution import PROMPT, TARGET, attributed, prefixes, wide_model


@contextmanager
def zeroed(model, layer, token):
    """Zero the value vectors of a token in one layer of the model."""

    def zero(module, args, output):
        output = output.clone()
        first = output.shape[-1] * 2 // 3 if model.config.model_type == "gpt2" else 0
        output[:, token, first:] = 0
        return output

    block = model.base_model.h[layer] if model.config.model_type == "gpt2" else model.base_model.layers[layer]
    hook = (block.attn.c_attn if model.config.model_type == "gpt2" else block.self_attn.v_proj).register_forward_hook(
        zero
    )
    yield
    hook.remove()


def output_of(model, layer, ids):
    """The output of a layer at the last token, before any final norm."""
    seen = []
    layers = model.base_model.h if model.config.model_type == "gpt2" else model.base_model.layers
    hook = layers[layer].register_forward_hook(
        lambda module, args, output: seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])
    )
    with torch.no_grad():
        model(torch.tensor([list(ids)]), use_cache=False)
    hook.remove()
    return seen[0]


def by_hooks(model, layer, ids):
    plain = output_of(model, layer, ids)
    found = []
    for token in range(len(ids)):
        with zeroed(model, layer, token):
            found.append(1 - torch.cosine_similarity(plain, output_of(model, layer, ids), dim=0).item())
    return np.array(found) / sum(found)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_each_layer_is_what_hooks_on_the_model_give(kind):
    model = tiny.wide_model(kind)
    if kind == "mistral":
        model.config.sliding_window = 3
        for block in model.base_model.layers:
            block.self_attn.sliding_window = 3
    for layer in range(model.config.num_hidden_layers):
        found = value_zeroing(steps_of(model, (5, 8)), layers=layer, aggregate_layers="single")
        for scores, n in zip(found, (5, 8), strict=True):
            np.testing.assert_allclose(scores.numpy(), by_hooks(model, layer, IDS[:n]), atol=2e-4)
            assert scores.sum().item() == pytest.approx(1, abs=1e-5)


def test_layers_are_averaged_in_the_one_call():
    model = wide_model("llama")
    found = attributed(model, method="value_zeroing", layers="0,-1")
    for step, (ids, _) in enumerate(prefixes(TARGET)):
        expected = np.mean([by_hooks(model, layer, ids) for layer in (0, model.config.num_hidden_layers - 1)], axis=0)
        np.testing.assert_allclose(found.scores[: len(ids), step], expected, atol=2e-4)


def test_the_command_takes_layers(opened, tmp_path):
    model, tokenizer = opened
    prompt = Prompt("a", PROMPT, raw=True, target="the city")
    rows = {}
    for layers in (None, "0", 0):
        folder = run(
            model, tokenizer, [prompt], tmp_path / f"{layers!r}", method="value_zeroing", layers=layers, progress=False
        )
        rows[layers] = [row.score for row in folder.records()]
    assert rows["0"] == rows[0]
    assert rows[None] != rows[0]


def test_wrong_layers_and_models_are_refused():
    with pytest.raises(InputError, match="layers is 9, but 9 does not exist; there are 0 to "):
        attributed(method="value_zeroing", layers=9)
    model = wide_model("llama")
    hook = model.model.layers[0].register_forward_hook(lambda module, args, output: output)
    try:
        attributed(model, method="value_zeroing")  # a hook that changes nothing is no reason to refuse
    finally:
        hook.remove()
    hook = model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 2)
    try:
        with pytest.raises(UnsupportedModelError):
            attributed(model, method="value_zeroing")
    finally:
        hook.remove()
