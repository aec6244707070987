"""Tiny random models of every family: L=4 layers, width D=32, vocabulary V=97, built in milliseconds.

Every parameter is random, also biases and norms that start as 0 and 1, and large enough that an edit changes
which token comes next.
"""

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

L, D, V, PAD = 4, 32, 97, 0
_COMMON = {"vocab_size": V, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
_LLAMA_LIKE = {
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT = {"n_embd": D, "n_layer": L, "n_head": 4, "n_positions": 64}
_GPT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_NEOX = {key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"} | {"rotary_pct": 0.5}
_OPT = {
    "hidden_size": D,
    "ffn_dim": 48,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": D,
    "dropout": 0.0,
}

# The six families, and the two layouts of GPT-NeoX and OPT that differ in how a layer joins its halves.
KINDS: dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig], dict[str, object]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, _LLAMA_LIKE),
    "mistral": (MistralForCausalLM, MistralConfig, _LLAMA_LIKE | {"sliding_window": 64}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, _GPT | _GPT_DROPOUT),
    "gptj": (GPTJForCausalLM, GPTJConfig, _GPT | _GPT_DROPOUT | {"rotary_dim": 4}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, _NEOX | {"use_parallel_residual": True}),
    "gpt_neox_sequential": (GPTNeoXForCausalLM, GPTNeoXConfig, _NEOX | {"use_parallel_residual": False}),
    "opt": (OPTForCausalLM, OPTConfig, _OPT),
    # As OPT-350m: norms after each sum, no final norm, word embeddings narrower than the layers.
    "opt_post_norm": (
        OPTForCausalLM,
        OPTConfig,
        _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
}


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """Build one model of a kind, the same for the same seed."""
    model_class, config_class, shape = KINDS[kind]
    model = model_class(config_class(**_COMMON, **shape)).eval()
    generator = torch.Generator().manual_seed(seed)
    norm_weights = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
            if id(parameter) in norm_weights:
                parameter.add_(1.0)
    assert model.config.num_hidden_layers == L
    assert model.config.hidden_size == D
    assert model.get_output_embeddings().weight.shape[0] == V
    assert not model.training
    return model


def hooks_on(model: nn.Module) -> int:
    """Count the hooks registered anywhere in a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
