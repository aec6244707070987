"""The parts of layers are what the row of the family says, or every analysis that reads them is refused."""

import dataclasses
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from interpret import attribute, record
from interpret.activations import activation_cache
from interpret.anatomy import FAMILIES, Family, Parts, check_scores
from interpret.anatomy.families import using_family
from interpret.control import supervised_control
from interpret.errors import UnsupportedModelError
from interpret.probing import ablated_heads, head_weights, logit_attribution
from interpret.probing.heads import head_outputs
from interpret.probing.neurons import neuron_values, reading_weights, scaled_neuron
from reference.agreement import (
    IDS,
    LOGITS,
    NUMBER,
    PARTS,
    attributed,
    controlled,
    interpreted,
    lens,
    recorded,
    shares,
    traced,
)
from reference.kinds import KINDS
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER
from reference.tiny import wide_model

_WRONG_GRANITE = [
    {"logit_divisor": ""},
    {"residual_scale": ""},
    {"logit_divisor": "", "residual_scale": ""},
    {"residual_scale": "no_such_setting"},
]


@pytest.mark.skipif("granite" not in KINDS, reason="not part of this release of transformers")
@pytest.mark.parametrize("analysis", [*LOGITS, recorded, controlled])
@pytest.mark.parametrize("wrong", _WRONG_GRANITE, ids=lambda wrong: "+".join(wrong))
def test_a_row_without_the_scales_of_granite_is_refused_or_right(wrong, analysis):
    model = wide_model("granite")
    right = analysis(model) if analysis in (attributed, lens, interpreted) else None
    with using_family(dataclasses.replace(FAMILIES["granite"], **wrong)):
        if "logit_divisor" in wrong and analysis in LOGITS:
            # ``shares`` records the parts before it reads logits.
            message = "where the model's own is .*logits_scaling=2.5|in layer 0, resid_pre .*residual_multiplier=0.5"
            with pytest.raises(UnsupportedModelError, match=message):
                analysis(model)
        elif "residual_scale" in wrong and analysis in PARTS:
            message = rf"in layer 0, resid_pre \+ attn_out is {NUMBER}, where the model has {NUMBER}; .*residual_mult"
            with pytest.raises(UnsupportedModelError, match=message):
                analysis(model)
        elif analysis is interpreted:
            with pytest.raises(UnsupportedModelError, match="in layer 0, resid_pre"):
                analysis(model)
        elif analysis is attributed:
            # Another row is differentiated in another way.
            largest = np.nanmax(np.abs(right.scores))
            np.testing.assert_allclose(analysis(model).scores, right.scores, rtol=0, atol=1e-5 * largest)
        elif analysis is lens:
            assert analysis(model).equals(right)


@pytest.mark.parametrize("analysis", PARTS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"attention_last": "self_attn.v_proj"},
        {"mlp_last": "mlp.act_fn"},
        {"mlp_norm": "no_such_norm"},
    ],
    ids=str,
)
def test_a_row_whose_parts_do_not_add_up_is_refused(wrong, analysis):
    model = wide_model("llama")
    with using_family(dataclasses.replace(FAMILIES["llama"], **wrong)):
        with pytest.raises(UnsupportedModelError, match="layer|the row of the family 'llama'"):
            analysis(model)
    analysis(model)


def parted(**fields) -> Callable[[Family], Family]:
    return lambda family: dataclasses.replace(family, parts=dataclasses.replace(family.parts, **fields))


_SWAPPED = [f"self_attn.{letter}_proj" for letter in "kqv"]
_WRONG_INSIDE = {
    "neurons": ("llama", parted(gate="mlp.up_proj", up="mlp.gate_proj"), "a neuron is"),
    "no gate": ("llama", parted(gate=""), "a neuron is"),
    "down": ("llama", parted(down="mlp.up_proj"), "parts, which do not fit together in layer 0"),
    "values": ("opt", parted(projections=tuple(_SWAPPED[::-1])), "the output of the heads at the first token is"),
    "queries": ("opt", parted(projections=tuple(_SWAPPED)), "the output of the heads is"),
    "heads": ("llama", parted(attention_out="self_attn.q_proj"), "the output of the (heads|attention)"),
    "packing": ("gpt2", parted(fused="groups"), "the output of the heads at the first token is"),
    "rotation": ("llama", parted(rotary=""), "the output of the heads is"),
    "attention norm": ("llama", parted(attention_norm="post_attention_layernorm"), "the normed input of the attention"),
    "offset": ("llama", parted(norm_offset=1.0), "the norm before the attention is"),
    "parallel": ("llama", lambda family: dataclasses.replace(family, block="parallel"), "the normed input of the MLP"),
    "MLP's last": ("llama", parted(mlp_after="input_layernorm"), "the output of the MLP is"),
}


def ablated(model):
    with ablated_heads(model, [(0, 0)]):
        pass


def scaled(model):
    with scaled_neuron(model, (0, 0), 2.0):
        pass


def reads(site):
    def analysis(model):
        with record(model, [f"{site}.0"]):
            pass

    return analysis


INSIDE: list[Callable] = [
    *(reads(site) for site in ("attn_in", "v", "heads", "mlp_in", "neurons")),
    ablated, scaled, shares, traced,
    partial(reading_weights, layer=0), partial(neuron_values, tokenizer=TOKENIZER, texts=[PROMPT], layers=[0]),
    partial(head_outputs, input_ids=torch.tensor([IDS]), layers=[0]),
]  # fmt: skip
"""Analyses that read or edit what is inside attention and MLP, without knowing how heads attend."""
ATTENDING: list[Callable] = [reads("q"), reads("k"), partial(head_weights, layer=0), traced]


@pytest.mark.parametrize("wrong", _WRONG_INSIDE)
def test_a_row_that_is_wrong_inside_attention_or_mlp_is_refused(wrong):
    kind, change, message = _WRONG_INSIDE[wrong]
    model = wide_model(kind)
    cache = activation_cache(model, None, [IDS])
    with using_family(change(FAMILIES[kind])):
        for analysis in ATTENDING if wrong in ("queries", "rotation") else (*INSIDE, *ATTENDING):
            if analysis is shares:
                analysis = partial(logit_attribution, cache=cache, tokens=[5])
            with pytest.raises(
                UnsupportedModelError, match=f"the row of its family names the wrong.*|{message}"
            ) as error:
                analysis(model)
            assert re.search(message, str(error.value))
    for analysis in (*INSIDE, *ATTENDING):
        analysis(model)


@pytest.mark.parametrize("method", ["layer_gradient_x_activation", "layer_integrated_gradients", "layer_deeplift"])
def test_attribution_of_layers_by_a_wrong_row_is_refused(method):
    model = wide_model("gemma2" if "gemma2" in KINDS else "llama")
    family = FAMILIES[model.config.model_type]
    wrong = dataclasses.replace(family, mlp_last="mlp" if family.name == "gemma2" else "mlp.act_fn")
    options = {} if method.endswith(("activation", "deeplift")) else {"n_steps": 2}
    with using_family(wrong), pytest.raises(UnsupportedModelError, match="in layer 0, (resid_mid|mlp_out)"):
        attribute(model, TOKENIZER, PROMPT, TARGET, method=method, layers="mlp_out", **options)


@pytest.mark.parametrize("change", [{"mlp_last": "mlp.down_proj"}, {"mlp_first": "mlp.gate_proj"}], ids=str)
def test_control_trains_the_whole_mlp_whichever_of_its_modules_the_row_names(change):
    def trained() -> torch.Tensor:
        target = torch.ones(32)
        with supervised_control(model, IDS, layer=1, positions=[-1], target=target, steps=3, lr=0.01) as losses:
            return torch.tensor(losses)

    model = wide_model("llama")
    expected = trained()
    with using_family(dataclasses.replace(FAMILIES["llama"], **change)):
        torch.testing.assert_close(trained(), expected)


def test_hooks_and_adapters_inside_do_not_make_a_right_row_wrong(family_model):
    def louder(module, args, output):
        return (1.5 * output[0], *output[1:]) if isinstance(output, tuple) else 1.5 * output

    layers = next(part for part in family_model.modules() if isinstance(part, nn.ModuleList))
    handles = [part.register_forward_hook(louder) for part in layers[1].modules() if isinstance(part, nn.Linear)]
    handles.append(layers[0].register_forward_hook(louder))
    check_scores(family_model)
    for handle in handles:
        handle.remove()


def test_a_wrong_row_is_not_called_an_adapter():
    model = wide_model("llama")
    parts = dataclasses.replace(FAMILIES["llama"].parts, gate="mlp.up_proj", up="mlp.gate_proj")
    assert isinstance(parts, Parts)
    with using_family(dataclasses.replace(FAMILIES["llama"], parts=parts)):
        with pytest.raises(UnsupportedModelError, match="the row of its family names the wrong parts"):
            traced(model)


def test_a_window_without_earlier_tokens_is_heeded():
    model = wide_model("mistral")
    model.config.sliding_window = 1  # counts the token itself; in 4.34.0, one token more
    check_scores(model)
