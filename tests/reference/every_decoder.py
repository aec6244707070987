"""Tiny random models of every decoder that transformers has, made from its configuration class alone.

Sizes are set by the names that settings have in many families; ``OVERRIDES`` holds what a single family needs besides.
"""

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

V = 450
"""Tokens of the vocabulary: enough for the toy tokenizers."""
LARGEST = 15_000_000
"""A model with more parameters was not made small by these settings, and is not built."""
_WIDTH = dict.fromkeys(
    ("hidden_size", "n_embd", "d_model", "dim_model", "emb_dim", "lru_width", "word_embed_proj_dim"), 32
)
_LAYERS = dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_layer", "decoder_layers"), 4)
_HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
)
_INNER = dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 48)
_EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
_EXPERTS |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24)
_EXPERTS |= dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2)
_EXPERTS |= dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1)
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_RECURRENT = dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "chunk_size", "mamba_chunk_size"), 8)
_RECURRENT |= dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "time_step_rank", "mamba_dt_rank"), 4)
_RECURRENT |= dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16)
_RECURRENT |= {"mamba_n_groups": 1, "n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_RECURRENT |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8)
_NO_DROPOUT = dict.fromkeys(
    ("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop",
     "attn_pdrop"), 0.0
)  # fmt: skip
_TEXT = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "is_decoder": True}
_TEXT |= dict.fromkeys(("max_position_embeddings", "n_positions"), 64)
SIZES: dict[str, Any] = _WIDTH | _LAYERS | _HEADS | _INNER | _EXPERTS | _LATENT | _RECURRENT | _NO_DROPOUT | _TEXT
SIZES |= {"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "encoder_layers": 4, "sliding_window": 4, "attention_window_size": 8}
OVERRIDES: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16},
    "moshi": {"sliding_window": 64},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_mem_blocks": 1, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
}
"""What single families need: settings that have to agree with each other."""


def every_decoder() -> list[str]:
    """Return the model types of all causal language models, in alphabetical order."""
    return sorted(name for name in CONFIG_MAPPING if CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING)


def tiny_decoder(model_type: str) -> PreTrainedModel:
    """Build a tiny model of a type, with random weights.

    Raises:
        ValueError: if the settings above do not make it small.
    """
    of_type = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[of_type]
    known = _settings(of_type)
    settings = {name: value for name, value in SIZES.items() if name in known}
    if "kv_lora_rank" in known:  # every head has its own keys
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    config = of_type(**settings | OVERRIDES.get(model_type, {}))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class._from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{model_type} has {size} parameters")
    torch.manual_seed(0)
    model: PreTrainedModel = model_class._from_config(config).eval()
    _randomise(model)
    return model


def _settings(of_type: type) -> set[str]:
    names: set[str] = set()
    for base in of_type.__mro__:
        names |= set(getattr(base, "__annotations__", {}))
        names |= set(inspect.signature(base.__init__).parameters)
    return names


def _randomise(model: PreTrainedModel) -> None:
    """Draw the matrices anew, and move the vectors: those of norms are around 1, others around what they were."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                before = 0 if parameter.dim() > 1 else 1 if "norm" in name.lower() else parameter.nan_to_num(0)
                parameter.copy_(before + noise)
