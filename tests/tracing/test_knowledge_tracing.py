import re
from dataclasses import replace

import pytest
from reference.tiny import KINDS, tiny_model

from interpret.errors import InputError
from interpret.tracing.knowledge_tracing import HookNames, check_module_names

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
    **dict.fromkeys(("llama", "llama3", "mistral", "qwen2", "qwen3"), LLAMA),
    "phi3": at("model.layers", "self_attn", "mlp", "model.embed_tokens"),
    # What these add to the residual stream has been normed.
    **dict.fromkeys(("gemma2", "gemma3", "olmo2"), AFTER),
    "gpt2": at("transformer.h", "attn", "mlp", "transformer.wte"),
    "gptj": at("transformer.h", "attn", "mlp", "transformer.wte"),
    "gpt_neox": NEOX,
    "gpt_neox_sequential": NEOX,
    "opt": OPT,
    "opt_post_norm": OPT,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_names_of_each_familys_own_parts_are_right(kind):
    check_module_names(tiny_model(kind), NAMES[kind])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"clean_replace": "model.layer.[LAYER_NUM]"},
            "hook_layer.clean_replace: 'model.layer.[LAYER_NUM]' is no module of LlamaForCausalLM; near it are "
            "'model.layers.[LAYER_NUM]', 'model.layers.[LAYER_NUM].mlp', 'model.layers.[LAYER_NUM].self_attn'",
        ),
        (
            {"corrupted_save": ("lm_head", "head")},
            "hook_layer.corrupted_save[1]: 'head' is no module of LlamaForCausalLM; near it are 'lm_head'",
        ),
        (
            {"clean_save": ("0123456789",)},
            "hook_layer.clean_save[0]: '0123456789' is no module of LlamaForCausalLM; print(model) shows its modules",
        ),
        (
            {"clean_replace": "model.layers.[LAYER_NUM].mlp"},
            "hook_layer.clean_replace: 'model.layers.[LAYER_NUM].mlp' is not each layer; "
            "that is 'model.layers.[LAYER_NUM]'",
        ),
        (
            {"clean_replace": "model.layers.0"},
            "hook_layer.clean_replace: 'model.layers.0' is not each layer; that is 'model.layers.[LAYER_NUM]'",
        ),
        (
            {"attn_sever": "model.layers.[LAYER_NUM].self_attn.o_proj"},
            "hook_layer.attn_sever: 'model.layers.[LAYER_NUM].self_attn.o_proj' is not the attention of each layer; "
            "that is 'model.layers.[LAYER_NUM].self_attn'",
        ),
        (
            {"mlp_sever": "model.layers.[LAYER_NUM].mlp.down_proj"},
            "hook_layer.mlp_sever: 'model.layers.[LAYER_NUM].mlp.down_proj' is not the module that ends the MLP of "
            "each layer; that is 'model.layers.[LAYER_NUM].mlp'",
        ),
        (
            {"corrupt": "model.norm"},
            "hook_layer.corrupt: 'model.norm' is not the input embedding; that is 'model.embed_tokens'",
        ),
    ],
)
def test_a_wrong_name_is_an_error_that_says_what_it_should_be(wrong, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_module_names(tiny_model("llama"), replace(LLAMA, **wrong))


def test_a_number_beyond_the_last_layer_is_no_module():
    names = replace(LLAMA, clean_save=("model.layers.4.mlp",))
    with pytest.raises(InputError, match=re.escape("'model.layers.4.mlp' is no module of LlamaForCausalLM")):
        check_module_names(tiny_model("llama"), names)


def test_the_names_of_another_family_are_no_modules_of_this_one():
    message = "'model.layers.[LAYER_NUM]' is no module of GPT2LMHeadModel; near it are 'transformer.h.[LAYER_NUM]'"
    with pytest.raises(InputError, match=re.escape(message)):
        check_module_names(tiny_model("gpt2"), LLAMA)
