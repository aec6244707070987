"""Logits computed from states are the model's own, in every analysis, or the model is refused with both figures."""

import copy
import dataclasses
import re
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from interpret import attach, attribute, interpretation_prompt, interpretations, plan_sources, record, trace
from interpret.activations import activation_cache
from interpret.anatomy import (
    FAMILIES,
    Family,
    Parts,
    check_evaluating,
    check_logits,
    check_parts,
    check_scores,
    embedding_table,
)
from interpret.control import supervised_control
from interpret.errors import InputError, UnsupportedModelError
from interpret.models.quantize import quantize_
from interpret.probing import ablated_heads, head_weights, logit_attribution, logit_lens
from interpret.probing.heads import head_outputs
from interpret.probing.neurons import neuron_values, reading_weights, scaled_neuron
from interpret.prompts.prompts import Prompt
from interpret.selfie import Settings
from interpret.tracing import TraceSettings, screen
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, ids_of, prefixes
from reference.tiny import ALL_KINDS, KINDS, hooks_on, tiny_model, wide_model
from reference.unlisted import CAUSAL, DividedLogits, Peft, adapt, bert, built

IDS = ids_of(PROMPT)
NUMBER = r"-?[\d.e+]+"


def attributed(model):
    return attribute(model, TOKENIZER, PROMPT, TARGET, step_scores=["probability", "logit"]).sequences[0]


def lens(model):
    return logit_lens(model, activation_cache(model, None, [IDS], ["resid_pre.0", "resid_post.*"]), [5], top=0)


def shares(model):
    return logit_attribution(model, activation_cache(model, None, [IDS]), [5])


def interpreted(model):
    sources = plan_sources(model, TOKENIZER, [Prompt("one", PROMPT, raw=True)], layers="1", tokens="2")
    template = interpretation_prompt(TOKENIZER, "hello{slots} city")
    return list(interpretations(model, TOKENIZER, sources, [template], Settings(new_tokens=3)))


def traced(model, mediator="hidden"):
    return trace(model, TOKENIZER, PROMPT, "Eiffel Tower", " the", samples=2, mediator=mediator)


def screened(model):
    return screen(model, TOKENIZER, PROMPT, "Eiffel Tower", " the", settings=TraceSettings(samples=2))


def recorded(model):
    with record(model, ["attn_out.0"]):
        pass


def controlled(model):
    with supervised_control(model, IDS, layer=1, positions=[-1], target=torch.ones(32), steps=1):
        pass


LOGITS = [attributed, lens, shares, interpreted, traced, screened]
"""Analyses that turn states into logits."""
PARTS = [shares, traced, screened, recorded, controlled]
"""Analyses that use what attention and MLP add to the residual stream."""


@contextmanager
def described(family: Family):
    """Use another row of the table inside the ``with`` block."""
    before = FAMILIES.get(family.name)
    FAMILIES[family.name] = family
    try:
        yield
    finally:
        if before is None:
            del FAMILIES[family.name]
        else:
            FAMILIES[family.name] = before


def divided() -> DividedLogits:
    config = copy.deepcopy(wide_model("llama").config)
    config.logits_scaling = 8.0
    model = DividedLogits(config).eval()
    model.load_state_dict(wide_model("llama").state_dict())
    return model


# ----------------------------------------------------------------------------------------------------- supported


def test_logits_and_parts_of_every_family_agree(family_model):
    for model in (family_model, family_model.base_model):
        check_logits(model)
        check_parts(model)
    assert hooks_on(family_model) == 0


@pytest.mark.parametrize("name", CAUSAL)
def test_predictions_of_causal_models_without_a_row_are_attributed_exactly(name):
    """Some scale their logits, or the embeddings of ids but not those they are given."""
    model = built(name, *CAUSAL[name])
    found = attributed(model)
    scale = 1.0
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        logits = model(torch.tensor([ids])).logits[0, -1]
        assert found.step_scores["logit"][step] == pytest.approx(logits[target].item(), rel=1e-4, abs=1e-5)
        probability = logits.softmax(-1)[target].item()
        assert found.step_scores["probability"][step] == pytest.approx(probability, rel=1e-4)
        x = model.get_input_embeddings()(torch.tensor([ids])).detach()
        if step == 0:  # the factor that makes embeddings stand for ids, if there is one
            scales = (1.0, model.config.hidden_size**0.5)
            (scale,) = (
                s for s in scales if torch.allclose(model(inputs_embeds=s * x).logits[0, -1], logits, atol=1e-4)
            )
        x = (scale * x).requires_grad_()
        value = model(inputs_embeds=x.clone()).logits[0, -1].softmax(-1)[target]  # CTRL scales it in place
        expected = (x * torch.autograd.grad(value, x)[0])[0].detach().numpy()
        np.testing.assert_allclose(found.scores[: len(ids), step], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.family in ("granite", "cohere")])
def test_scaled_logits_are_the_models_own_in_every_analysis(kind):
    model = wide_model(kind)
    logits = model(torch.tensor([IDS])).logits[0, -1].detach()
    p = logits.softmax(-1)
    last = lens(model).iloc[-1]
    assert (last.logit, last.probability) == pytest.approx((logits[5].item(), p[5].item()), rel=1e-4)
    assert shares(model).logit.sum() == pytest.approx(logits[5].item(), rel=1e-4)
    first = prefixes(TARGET)[0][1]
    assert attributed(model).step_scores["probability"][0] == pytest.approx(p[first].item(), rel=1e-4)
    assert traced(model).high == pytest.approx(p[first].item(), rel=1e-4)
    control, _ = interpreted(model)
    ids = interpretation_prompt(TOKENIZER, "hello{slots} city").ids
    plain = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0, len(ids) :].tolist()
    assert control.interpretation == plain
    after = model(torch.tensor([[*ids, *plain]])).logits[0].softmax(-1)
    expected = [after[len(ids) - 1 + step, token].item() for step, token in enumerate(plain)]
    assert control.interpretation_prob == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize(
    "chosen",
    ["embed_out|lm_head", r".*(embed_tokens|wte|embed_in)", r".*(proj|attn|fc|dense|fc1|fc2|query_key_value|4h)"],
)
def test_adapters_take_part_everywhere(kind, chosen):
    model = wide_model(kind)
    plain = model(torch.tensor([IDS])).logits[0, -1].detach()
    model.config.tie_word_embeddings = False
    adapt(model, lambda name: re.fullmatch(chosen, name) is not None)
    logits = model(torch.tensor([IDS])).logits[0, -1].detach()
    assert (logits - plain).abs().max() > 0.1, "the adapters do nothing"
    assert shares(model).logit.sum() == pytest.approx(logits[5].item(), abs=1e-3)
    assert lens(model).iloc[-1].logit == pytest.approx(logits[5].item(), abs=1e-4)
    first = prefixes(TARGET)[0][1]
    assert attributed(model).step_scores["logit"][0] == pytest.approx(logits[first].item(), abs=1e-4)
    assert traced(model).high == pytest.approx(logits.softmax(-1)[first].item(), rel=1e-4)


@torch.no_grad()
def test_the_embedding_table_includes_adapters(llama):
    adapt(llama, lambda name: name == "model.embed_tokens")
    ids = torch.tensor([5, 6, 7])
    torch.testing.assert_close(embedding_table(llama)[ids], llama.model.embed_tokens(ids))
    assert not torch.allclose(embedding_table(llama)[ids], tiny_model("llama").model.embed_tokens(ids), atol=0.01)
    llama.model.embed_tokens = llama.model.embed_tokens.base_layer


def test_a_biased_unembedding_has_its_share_with_an_adapter():
    model = tiny_model("llama")
    model.lm_head = nn.Linear(*model.lm_head.weight.shape[::-1])
    cache = activation_cache(model, None, [[5, 6, 7]])
    without = logit_attribution(model, cache, [9])
    adapt(model, lambda name: name == "lm_head")
    nn.init.zeros_(model.lm_head.up)
    with_adapter = logit_attribution(model, cache, [9])
    np.testing.assert_allclose(with_adapter.logit, without.logit, atol=1e-5)
    assert "output_bias" in set(with_adapter.component)


# ------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("analysis", LOGITS)
def test_other_logits_than_the_models_own_are_refused_with_both_figures(analysis):
    message = (
        rf"DividedLogits \(model_type 'llama'\): unembedding its last state gives a logit of {NUMBER}, where the "
        rf"model's own is {NUMBER}; its configuration has logits_scaling=8.0; the row of the family 'llama' has to "
        r"describe this \(logit_scale, logit_divisor, final_softcap, final\)"
    )
    model = divided()
    with pytest.raises(UnsupportedModelError, match=f"^{message}$") as error:
        analysis(model)
    ours, own = (
        float(figure) for figure in re.findall(rf"(?:of|is) ({NUMBER}),? ?", str(error.value).replace(";", " "))
    )
    assert ours == pytest.approx(8 * own, rel=1e-2)


def test_the_figures_are_those_of_the_model():
    with described(dataclasses.replace(FAMILIES["llama"], logit_divisor="logits_scaling")):
        model = divided()
        logits = model(torch.tensor([IDS])).logits[0, -1]
        assert lens(model).iloc[-1].logit == pytest.approx(logits[5].item(), rel=1e-4)
        assert shares(model).logit.sum() == pytest.approx(logits[5].item(), rel=1e-4)
        assert traced(model).high == pytest.approx(logits.softmax(-1)[prefixes(TARGET)[0][1]].item(), rel=1e-4)


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
    with described(dataclasses.replace(FAMILIES["granite"], **wrong)):
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
            np.testing.assert_array_equal(analysis(model).scores, right.scores)
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
    with described(dataclasses.replace(FAMILIES["llama"], **wrong)):
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
    "packing": ("gpt2", parted(fused="heads"), "the output of the heads at the first token is"),
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
    with described(change(FAMILIES[kind])):
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
    with described(wrong), pytest.raises(UnsupportedModelError, match="in layer 0, (resid_mid|mlp_out)"):
        attribute(model, TOKENIZER, PROMPT, TARGET, method=method, layers="mlp_out", **options)


@pytest.mark.parametrize("change", [{"mlp_last": "mlp.down_proj"}, {"mlp_first": "mlp.gate_proj"}], ids=str)
def test_control_trains_the_whole_mlp_whichever_of_its_modules_the_row_names(change):
    def trained() -> torch.Tensor:
        target = torch.ones(32)
        with supervised_control(model, IDS, layer=1, positions=[-1], target=target, steps=3, lr=0.01) as losses:
            return torch.tensor(losses)

    model = wide_model("llama")
    expected = trained()
    with described(dataclasses.replace(FAMILIES["llama"], **change)):
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


def test_a_model_whose_head_transforms_states_is_refused_and_not_a_shape_error():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = built("RemBertForCausalLM", "RemBertConfig", shape | {"vocab_size": 450, "is_decoder": True})
    message = r"RemBertForCausalLM \(model_type 'rembert'\): its logits cannot be computed from .* \(RuntimeError: mat1"
    with pytest.raises(UnsupportedModelError, match=message):
        attributed(model)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_bert_is_refused_for_its_head_or_for_what_it_attends_to(is_decoder):
    message = (
        r"BertLMHeadModel \(model_type 'bert'\): unembedding its last state gives a logit of .* between the two, it "
        "changes states or logits in a way that is not supported here"
        if is_decoder
        else r"BertLMHeadModel: tokens attend to later tokens \(its configuration has is_decoder=False\): a "
        rf"prediction changes from {NUMBER} to {NUMBER} when only a later token changes\. Only models with"
    )
    with pytest.raises(UnsupportedModelError, match=f"^{message}"):
        attributed(bert(is_decoder=is_decoder))


@pytest.mark.skipif(
    not hasattr(transformers, "Gemma3TextConfig")
    or "use_bidirectional_attention" not in vars(transformers.Gemma3TextConfig()),
    reason="not part of this release of transformers",
)
@pytest.mark.parametrize("analysis", LOGITS)
def test_attention_that_is_not_causal_is_refused(analysis):
    kind = ALL_KINDS["gemma3"]
    shape = kind.shape | {"vocab_size": 450, "use_bidirectional_attention": True}
    model = built(kind.model, kind.config, shape)
    message = r"tokens attend to later tokens \(its configuration has use_bidirectional_attention=True\): a prediction"
    with pytest.raises(UnsupportedModelError, match=f"^Gemma3ForCausalLM: {message}"):
        analysis(model)


def seeing_ahead(module, args, output):
    """A hook that shows each token the next one."""
    states = output[0] if isinstance(output, tuple) else output
    states = states + 0.01 * states.roll(-1, dims=1)
    return (states, *output[1:]) if isinstance(output, tuple) else states


def test_any_way_to_see_later_tokens_is_noticed(family_model):
    layers = family_model.get_submodule(
        next(name for name, part in family_model.named_modules() if isinstance(part, nn.ModuleList))
    )
    handle = layers[1].register_forward_hook(seeing_ahead)
    with pytest.raises(UnsupportedModelError, match="tokens attend to later tokens: a prediction changes from"):
        check_logits(family_model)
    handle.remove()


# ------------------------------------------------------------------------------------------------ once per model


def counted(model) -> list[int]:
    passes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *event: passes.append(1))
    return passes


def test_the_comparison_is_made_once_and_again_when_the_model_changes():
    model = wide_model("llama")
    passes, seen = counted(model), 0
    for analysis in LOGITS:
        analysis(model)

    def compared() -> bool:
        nonlocal seen
        before = len(passes)
        check_logits(model)
        check_parts(model)
        return len(passes) > before

    assert not compared()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert not compared(), "new weights in the same modules need no new comparison"
    old, model.model.norm = model.model.norm, copy.deepcopy(model.model.norm)
    assert compared()
    del old
    adapt(model, lambda name: name == "model.layers.0.mlp.up_proj")
    assert compared()
    model.config.logits_scaling = 3.0
    assert compared()
    with described(dataclasses.replace(FAMILIES["llama"], parts=None)):
        assert compared()
    handle = model.register_forward_hook(lambda module, args, output: None)
    assert compared()
    handle.remove()
    assert compared()
    assert not compared()


def test_a_hook_that_changes_the_logits_is_noticed():
    model = wide_model("llama")
    lens(model)

    def doubled(module, args, output):
        output.logits = 2 * output.logits
        return output

    handle = model.register_forward_hook(doubled)
    with pytest.raises(UnsupportedModelError, match="unembedding its last state gives a logit"):
        lens(model)
    handle.remove()
    lens(model)


def test_the_comparison_does_not_see_edits_of_the_moment(llama):
    """Inside ``with`` blocks that edit states, the model is still compared as it is without them."""
    from interpret.probing import ablated_heads  # noqa: PLC0415

    with ablated_heads(llama, [(1, 0)]):
        check_logits(llama)
        check_parts(llama)
        with record(llama, ["attn_out.1"]) as seen, torch.no_grad():
            llama(torch.tensor([[5, 6, 7]]))
        assert seen["attn_out.1"].shape == (1, 3, 32)


def test_quantised_and_half_precision_models_agree():
    model = wide_model("llama")
    quantize_(model, 8, device=torch.device("cpu"))
    check_logits(model)
    check_parts(model)
    half = wide_model("gpt2").to(torch.bfloat16)
    check_logits(half)
    check_parts(half)


# ------------------------------------------------------------------------------------------- wrappers and modes


WRAPPERS: dict[str, tuple[Callable, str]] = {
    "compiled": (torch.compile, "OptimizedModule is a wrapper around a model; pass the model itself: model._orig_mod"),
    "peft": (Peft, "Peft is a wrapper around a model; pass the model itself: model.get_base_model(), which includes"),
    "parallel": (nn.DataParallel, "DataParallel is a wrapper around a model; pass the model itself: model.module"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("analysis", [*LOGITS, recorded, controlled, attach])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_refused_and_the_message_says_what_to_pass(wrapper, analysis):
    wrap, message = WRAPPERS[wrapper]
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}"):
        analysis(wrap(wide_model("llama")))


@pytest.mark.parametrize("analysis", [attributed, recorded, attach])
def test_code_compiled_in_place_is_refused(analysis):
    model = wide_model("llama")
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(
        UnsupportedModelError, match=r"^LlamaForCausalLM: it, or a part of it, was compiled by .compile"
    ):
        analysis(model)


@pytest.mark.parametrize("analysis", [attributed, interpreted, traced, screened])
def test_one_module_in_training_mode_is_named(analysis):
    model = wide_model("gpt2")
    model.transformer.h[1].attn.resid_dropout = nn.Dropout(0.5)
    message = "the module 'transformer.h.1.attn.resid_dropout' is in training mode, in which dropout makes every run"
    with pytest.raises(InputError, match=f"^{message}"):
        analysis(model)
    model.eval()
    analysis(model)


def test_a_module_in_training_mode_without_dropout_is_no_problem(llama):
    llama.model.embed_tokens.train()
    check_evaluating(llama)
    llama.eval()


def test_longrope_is_named_where_the_text_grows_past_its_limit():
    if "phi3" not in KINDS:
        pytest.skip("not part of this release of transformers")
    kind = ALL_KINDS["phi3"]
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    shape = kind.shape | {"vocab_size": 450, "original_max_position_embeddings": 8, "rope_scaling": factors}
    model = built(kind.model, kind.config, shape | {"sliding_window": None})
    template = interpretation_prompt(TOKENIZER, "hello{slots} city")
    sources = plan_sources(model, TOKENIZER, [Prompt("one", "a b", raw=True)], layers="1", tokens="0")
    grows = 9 - len(template.ids)
    list(interpretations(model, TOKENIZER, sources, [template], Settings(new_tokens=grows - 1, prompt_output_tokens=1)))
    with pytest.raises(
        InputError, match=r"has \d+ tokens; with \d+ new tokens it grows beyond 8, where .* \(longrope\)"
    ):
        list(interpretations(model, TOKENIZER, sources, [template], Settings(new_tokens=grows, prompt_output_tokens=1)))


def test_a_wrong_row_is_not_called_an_adapter():
    model = wide_model("llama")
    parts = dataclasses.replace(FAMILIES["llama"].parts, gate="mlp.up_proj", up="mlp.gate_proj")
    assert isinstance(parts, Parts)
    with described(dataclasses.replace(FAMILIES["llama"], parts=parts)):
        with pytest.raises(UnsupportedModelError, match="the row of its family names the wrong parts"):
            traced(model)
