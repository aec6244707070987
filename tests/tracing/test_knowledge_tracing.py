import re
from dataclasses import replace

import pytest

from interpret.errors import InputError
from interpret.tracing.knowledge_tracing import HookNames, check_module_names
from reference.tiny import KINDS, tiny_model

LLAMA = HookNames(
    clean_replace="model.layers.[LAYER_NUM]",
    attn_sever="model.layers.[LAYER_NUM].self_attn",
    mlp_sever="model.layers.[LAYER_NUM].mlp",
    corrupt="model.embed_tokens",
    clean_save=("model.layers.[LAYER_NUM]", "model.layers.3.mlp.up_proj", "lm_head"),
    corrupted_save=("model.layers.[LAYER_NUM].mlp",),
)


def at(layers, attention, mlp, embedding):
    layer = f"{layers}.[LAYER_NUM]"
    return HookNames(layer, f"{layer}.{attention}", f"{layer}.{mlp}", embedding)


OPT = at("model.decoder.layers", "self_attn", "fc2", "model.decoder.embed_tokens")
NEOX = at("gpt_neox.layers", "attention", "mlp", "gpt_neox.embed_in")
AFTER = at("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "model.embed_tokens")
NAMES = {
    **dict.fromkeys(
        ("llama", "llama3", "mistral", "qwen2", "qwen3", "granite", "cohere", "cohere_normed_heads"), LLAMA
    ),
    "phi3": at("model.layers", "self_attn", "mlp", "model.embed_tokens"),
    # In these, attention and MLP outputs pass a norm before they are added to the residual stream.
    **dict.fromkeys(("gemma2", "gemma3", "olmo2"), AFTER),
    "gpt2": at("transformer.h", "attn", "mlp", "transformer.wte"),
    "gptj": at("transformer.h", "attn", "mlp", "transformer.wte"),
    "gpt_neox": NEOX,
    "gpt_neox_sequential": NEOX,
    "opt": OPT,
    "opt_post_norm": OPT,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_names_of_each_familys_modules_are_accepted(kind):
    check_module_names(tiny_model(kind), NAMES[kind])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"clean_replace": "model.layer.[LAYER_NUM]"},
            "hook_layer.clean_replace: 'model.layer.[LAYER_NUM]' is not a module of LlamaForCausalLM; similar names: "
            "'model.layers.[LAYER_NUM]', 'model.layers.[LAYER_NUM].mlp', 'model.layers.[LAYER_NUM].self_attn'",
        ),
        (
            {"corrupted_save": ("lm_head", "head")},
            "hook_layer.corrupted_save[1]: 'head' is not a module of LlamaForCausalLM; similar names: 'lm_head'",
        ),
        (
            {"clean_save": ("0123456789",)},
            "hook_layer.clean_save[0]: '0123456789' is not a module of LlamaForCausalLM; "
            "print(model) lists its modules",
        ),
        (
            {"clean_replace": "model.layers.[LAYER_NUM].mlp"},
            "hook_layer.clean_replace: 'model.layers.[LAYER_NUM].mlp' does not name each layer; "
            "expected 'model.layers.[LAYER_NUM]'",
        ),
        (
            {"clean_replace": "model.layers.0"},
            "hook_layer.clean_replace: 'model.layers.0' does not name each layer; expected 'model.layers.[LAYER_NUM]'",
        ),
        (
            {"attn_sever": "model.layers.[LAYER_NUM].self_attn.o_proj"},
            "hook_layer.attn_sever: 'model.layers.[LAYER_NUM].self_attn.o_proj' does not name the module that "
            "outputs the attention of each layer; expected 'model.layers.[LAYER_NUM].self_attn'",
        ),
        (
            {"mlp_sever": "model.layers.[LAYER_NUM].mlp.down_proj"},
            "hook_layer.mlp_sever: 'model.layers.[LAYER_NUM].mlp.down_proj' does not name the module that "
            "outputs the MLP of each layer; expected 'model.layers.[LAYER_NUM].mlp'",
        ),
        (
            {"corrupt": "model.norm"},
            "hook_layer.corrupt: 'model.norm' does not name the input embedding; expected 'model.embed_tokens'",
        ),
    ],
)
def test_a_wrong_name_is_an_error_with_the_expected_name(wrong, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_module_names(tiny_model("llama"), replace(LLAMA, **wrong))


def test_an_index_beyond_the_last_layer_is_refused():
    names = replace(LLAMA, clean_save=("model.layers.4.mlp",))
    with pytest.raises(InputError, match=re.escape("'model.layers.4.mlp' is not a module of LlamaForCausalLM")):
        check_module_names(tiny_model("llama"), names)


def test_names_of_another_family_are_refused():
    message = (
        "'model.layers.[LAYER_NUM]' is not a module of GPT2LMHeadModel; similar names: 'transformer.h.[LAYER_NUM]'"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        check_module_names(tiny_model("gpt2"), LLAMA)
