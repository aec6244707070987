"""Logits computed from states are the model's own, in every analysis, or the model is refused with both figures."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from interpret import interpretation_prompt
from interpret.activations import activation_cache
from interpret.anatomy import FAMILIES, check_logits, check_parts, embedding_table
from interpret.anatomy.families import using_family
from interpret.errors import UnsupportedModelError
from interpret.probing import logit_attribution
from reference.agreement import IDS, LOGITS, NUMBER, attributed, divided, interpreted, lens, shares, traced
from reference.kinds import ALL_KINDS, KINDS
from reference.plain_attribution import TARGET, TOKENIZER, prefixes
from reference.tiny import hooks_on, tiny_model, wide_model
from reference.unlisted import CAUSAL, adapt, bert, built


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
    with using_family(dataclasses.replace(FAMILIES["llama"], logit_divisor="logits_scaling")):
        model = divided()
        logits = model(torch.tensor([IDS])).logits[0, -1]
        assert lens(model).iloc[-1].logit == pytest.approx(logits[5].item(), rel=1e-4)
        assert shares(model).logit.sum() == pytest.approx(logits[5].item(), rel=1e-4)
        assert traced(model).high == pytest.approx(logits.softmax(-1)[prefixes(TARGET)[0][1]].item(), rel=1e-4)


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
