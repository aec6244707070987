"""The kinds of tiny models: a model class and a configuration for every family, and which tests they take part in.

L=4 layers, width D=32, vocabulary V=97; ``reference.tiny`` builds the models.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import transformers

L, D, V, PAD = 4, 32, 97, 0
COMMON = {"vocab_size": V, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
LLAMA_LIKE = {
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT = {"n_embd": D, "n_layer": L, "n_head": 4, "n_positions": 64}
_GPT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_NEOX = {key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"} | {"rotary_pct": 0.5}
_OPT = {
    "hidden_size": D,
    "ffn_dim": 48,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": D,
    "dropout": 0.0,
}

# In every other layer, a token attends to itself and the three tokens before it.
_WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
# Head width larger than D / H, as in these families.
_WIDE_HEADS = LLAMA_LIKE | {"head_dim": 16}
_GEMMA = _WIDE_HEADS | _WINDOWS | {"query_pre_attn_scalar": 16, "final_logit_softcapping": 8.0}
_GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.5}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


_FAMILY_OF = {
    "GPTNeoX": "gpt_neox",
    "Gemma3Text": "gemma3_text",
    "GPTBigCode": "gpt_bigcode",
    "GPTNeo": "gpt_neo",
    "SeedOss": "seed_oss",
    "Ernie4_5": "ernie4_5",
    "HunYuanDenseV1": "hunyuan_v1_dense",
    "Qwen2Moe": "qwen2_moe",
    "Qwen3Moe": "qwen3_moe",
    "GptOss": "gpt_oss",
    "Ernie4_5_Moe": "ernie4_5_moe",
    "Glm4Moe": "glm4_moe",
    "MiniMaxM2": "minimax_m2",
    "DeepseekV2": "deepseek_v2",
    "DeepseekV3": "deepseek_v3",
    "FalconMamba": "falcon_mamba",
    "Lfm2Moe": "lfm2_moe",
    "Qwen3Next": "qwen3_next",
    "RecurrentGemma": "recurrent_gemma",
    "SolarOpen": "solar_open",
    "FlexOlmo": "flex_olmo",
    "HunYuanMoEV1": "hunyuan_v1_moe",
    "Llama4Text": "llama4_text",
    # Multimodal models, which have the family of their text part.
    "Gemma3": "gemma3_text",
    "Mistral3": "mistral",
    "Llama4": "llama4_text",
    "Qwen2VL": "qwen2_vl_text",
    "Qwen2_5_VL": "qwen2_5_vl_text",
    "Qwen3VL": "qwen3_vl_text",
    "Qwen3VLMoe": "qwen3_vl_moe_text",
}


@dataclass(frozen=True)
class Kind:
    """A model class and the configuration of its tiny model."""

    model: str
    """Name of the model class in transformers."""
    config: str
    """Name of its configuration class."""
    shape: dict[str, Any]
    """Arguments of the configuration; for a multimodal model, with ``text_config`` and ``vision_config``."""
    since: str = "4.34.0"
    """The first release of transformers with this model, or 4.34.0 if that is earlier."""
    fails_in: tuple[str, ...] = ()
    """Releases whose own forward pass of this model raises an error."""

    @property
    def family(self) -> str:
        """Name of the model's family in ``interpret.anatomy.FAMILIES``."""
        return _FAMILY_OF.get(self.config.removesuffix("Config"), self.config.removesuffix("Config").lower())


# Families whose tests all run for every change, and variants of some with another layer layout or rotary embeddings.
MOST_TESTED: dict[str, Kind] = {
    "llama": Kind("LlamaForCausalLM", "LlamaConfig", LLAMA_LIKE),
    "llama3": Kind("LlamaForCausalLM", "LlamaConfig", LLAMA_LIKE | {"rope_scaling": _LLAMA3}, "4.43.0"),
    "mistral": Kind("MistralForCausalLM", "MistralConfig", LLAMA_LIKE | {"sliding_window": 64}),
    "qwen2": Kind("Qwen2ForCausalLM", "Qwen2Config", LLAMA_LIKE | _WINDOWS | {"use_sliding_window": True}, "4.37.0"),
    "qwen3": Kind("Qwen3ForCausalLM", "Qwen3Config", _WIDE_HEADS, "4.51.0"),
    "gemma2": Kind("Gemma2ForCausalLM", "Gemma2Config", _GEMMA | {"attn_logit_softcapping": 2.0}, "4.42.0"),
    "gemma3": Kind("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA, "4.50.0"),
    "phi3": Kind("Phi3ForCausalLM", "Phi3Config", LLAMA_LIKE | {"sliding_window": 4}, "4.41.0"),
    "olmo2": Kind("Olmo2ForCausalLM", "Olmo2Config", LLAMA_LIKE, "4.47.0"),
    "granite": Kind("GraniteForCausalLM", "GraniteConfig", LLAMA_LIKE | _GRANITE, "4.45.0"),
    "cohere": Kind("CohereForCausalLM", "CohereConfig", LLAMA_LIKE | {"logit_scale": 0.25}, "4.39.0"),
    "cohere_normed_heads": Kind(
        "CohereForCausalLM", "CohereConfig", LLAMA_LIKE | {"logit_scale": 0.25, "use_qk_norm": True}, "4.39.0"
    ),
    "gpt2": Kind("GPT2LMHeadModel", "GPT2Config", _GPT | _GPT_DROPOUT),
    "gptj": Kind("GPTJForCausalLM", "GPTJConfig", _GPT | _GPT_DROPOUT | {"rotary_dim": 4}),
    "gpt_neox": Kind("GPTNeoXForCausalLM", "GPTNeoXConfig", _NEOX | {"use_parallel_residual": True}),
    "gpt_neox_sequential": Kind("GPTNeoXForCausalLM", "GPTNeoXConfig", _NEOX | {"use_parallel_residual": False}),
    "opt": Kind("OPTForCausalLM", "OPTConfig", _OPT),
    # As OPT-350m: norms after each sum, no final norm, word embeddings narrower than the layers.
    "opt_post_norm": Kind(
        "OPTForCausalLM", "OPTConfig", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16}
    ),
}


_PARTIAL = {"partial_rotary_factor": 0.5}
_FALCON = {"hidden_size": D, "num_hidden_layers": L, "num_attention_heads": 4, "max_position_embeddings": 64}
_CODE = {"hidden_size": D, "num_layers": L, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64}
_CODE |= {"d_model": D, "dropout": 0.0, "attention_dropout": 0.0}
_BIOGPT = _NEOX | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Two of four experts for each token.
_EXPERTS = LLAMA_LIKE | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL = {"num_local_experts": 4}
_NUMBERED = {"num_experts": 4}
_ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LATENT |= {"num_key_value_heads": 4}
_LLAMA4 = _EXPERTS | _LOCAL | {"head_dim": 8, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}
_LLAMA4 |= {"no_rope_layers": [1, 1, 1, 0], "attention_chunk_size": 64}
_SEEING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SEEING |= {"image_size": 28, "patch_size": 14}
_PROJECTED = {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
_QWEN_SEEING = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2, "intermediate_size": 16}
_QWEN_SEEING |= {"out_hidden_size": D, "patch_size": 14, "num_position_embeddings": 16}
_QWEN_SEEING |= {"deepstack_visual_indexes": [0], "fullatt_block_indexes": [0]}
_QWEN_TOKENS = {"image_token_id": 93, "video_token_id": 94, "vision_start_token_id": 95, "vision_end_token_id": 96}


def _qwen_vl(**text: Any) -> dict[str, Any]:
    """Return the shape of a multimodal Qwen; each feature of a head rotates by one of three positions of an image."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    text = LLAMA_LIKE | {"rope_scaling": rope} | text
    return {"text_config": text, "vision_config": _QWEN_SEEING, **_QWEN_TOKENS}


_MAMBA = {"hidden_size": D, "num_hidden_layers": L, "state_size": 8, "time_step_rank": 4}
_MAMBA2 = {"num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8, "chunk_size": 4}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_INNER_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_chunk_size": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2}
_SINCE_5 = not transformers.__version__.startswith("4.")
# Before transformers 5, some configurations call the same layers by other names.
_MIXER = "linear_attention" if _SINCE_5 else "mamba"
_MIXED = _HYBRID if _SINCE_5 else {"layer_types": ["mamba", "attention"] * 2}

# Further families: the tests of the README's table, and those of each analysis in tests/anatomy/test_more_families.py.
_MORE: dict[str, Kind] = {
    "gemma": Kind("GemmaForCausalLM", "GemmaConfig", _WIDE_HEADS, "4.38.0"),
    "vaultgemma": Kind("VaultGemmaForCausalLM", "VaultGemmaConfig", _GEMMA, "4.57.0"),
    "ministral": Kind("MinistralForCausalLM", "MinistralConfig", _WIDE_HEADS | _WINDOWS, "4.57.2"),
    "olmo": Kind("OlmoForCausalLM", "OlmoConfig", LLAMA_LIKE, "4.40.0"),
    "olmo3": Kind("Olmo3ForCausalLM", "Olmo3Config", LLAMA_LIKE | _WINDOWS, "4.57.0"),
    "smollm3": Kind("SmolLM3ForCausalLM", "SmolLM3Config", LLAMA_LIKE | {"no_rope_layer_interval": 2}, "4.53.0"),
    "seed_oss": Kind("SeedOssForCausalLM", "SeedOssConfig", _WIDE_HEADS, "4.56.0"),
    "cwm": Kind("CwmForCausalLM", "CwmConfig", LLAMA_LIKE | _WINDOWS, "5.0.0"),
    "helium": Kind("HeliumForCausalLM", "HeliumConfig", LLAMA_LIKE | {"head_dim": 8}, "4.49.0"),
    "ernie4_5": Kind("Ernie4_5ForCausalLM", "Ernie4_5Config", LLAMA_LIKE | {"head_dim": 8}, "4.54.0"),
    "exaone4": Kind("Exaone4ForCausalLM", "Exaone4Config", LLAMA_LIKE | _WINDOWS, "4.54.0"),
    "glm": Kind("GlmForCausalLM", "GlmConfig", LLAMA_LIKE | {"head_dim": 8} | _PARTIAL, "4.46.0"),
    "glm4": Kind("Glm4ForCausalLM", "Glm4Config", LLAMA_LIKE | {"head_dim": 8} | _PARTIAL, "4.51.0"),
    "arcee": Kind("ArceeForCausalLM", "ArceeConfig", LLAMA_LIKE, "4.53.0"),
    "jais2": Kind("Jais2ForCausalLM", "Jais2Config", LLAMA_LIKE, "5.0.0"),
    "nemotron": Kind("NemotronForCausalLM", "NemotronConfig", LLAMA_LIKE | _PARTIAL, "4.44.0"),
    "apertus": Kind("ApertusForCausalLM", "ApertusConfig", LLAMA_LIKE, "4.56.0"),
    "starcoder2": Kind("Starcoder2ForCausalLM", "Starcoder2Config", LLAMA_LIKE | {"sliding_window": 4}, "4.39.0"),
    "hunyuan": Kind("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Config", LLAMA_LIKE | {"head_dim": 8}, "4.56.0"),
    "cohere2": Kind("Cohere2ForCausalLM", "Cohere2Config", LLAMA_LIKE | _WINDOWS | {"logit_scale": 0.25}, "4.48.0"),
    "phi": Kind("PhiForCausalLM", "PhiConfig", LLAMA_LIKE | _PARTIAL, "4.36.0"),
    "phi_normed_heads": Kind("PhiForCausalLM", "PhiConfig", LLAMA_LIKE | _PARTIAL | {"qk_layernorm": True}, "4.36.0"),
    "stablelm": Kind("StableLmForCausalLM", "StableLmConfig", LLAMA_LIKE | _PARTIAL, "4.38.0"),
    "stablelm_parallel": Kind(
        "StableLmForCausalLM", "StableLmConfig", LLAMA_LIKE | _PARTIAL | {"use_parallel_residual": True}, "4.38.0"
    ),
    "codegen": Kind("CodeGenForCausalLM", "CodeGenConfig", _GPT | _GPT_DROPOUT | {"rotary_dim": 4}),
    "falcon": Kind("FalconForCausalLM", "FalconConfig", _FALCON),
    "falcon_grouped": Kind(
        "FalconForCausalLM", "FalconConfig", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "falcon_alibi": Kind(
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "gpt_bigcode": Kind("GPTBigCodeForCausalLM", "GPTBigCodeConfig", _GPT | _GPT_DROPOUT),
    "gpt_neo": Kind(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "hidden_size": D,
            "intermediate_size": 48,
            "num_layers": L,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "window_size": 4,
            "attention_types": [[["global", "local"], 2]],
        },
    ),
    "xglm": Kind("XGLMForCausalLM", "XGLMConfig", _CODE),
    "biogpt": Kind("BioGptForCausalLM", "BioGptConfig", _BIOGPT),
    "persimmon": Kind("PersimmonForCausalLM", "PersimmonConfig", _NEOX | {"qk_layernorm": True}),
    "bloom": Kind("BloomForCausalLM", "BloomConfig", {"hidden_size": D, "n_layer": L, "n_head": 4}),
    "mpt": Kind("MptForCausalLM", "MptConfig", {"d_model": D, "n_layers": L, "n_heads": 4, "max_seq_len": 64}),
    "mixtral": Kind("MixtralForCausalLM", "MixtralConfig", _EXPERTS | _LOCAL, "4.36.0"),
    "qwen2_moe": Kind(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _EXPERTS | _NUMBERED | {"shared_expert_intermediate_size": 24},
        "4.40.0",
    ),
    "qwen3_moe": Kind(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _EXPERTS | _NUMBERED | {"mlp_only_layers": [1], "head_dim": 16},
        "4.51.0",
    ),
    "olmoe": Kind("OlmoeForCausalLM", "OlmoeConfig", _EXPERTS | _NUMBERED, "4.45.0"),
    "gpt_oss": Kind("GptOssForCausalLM", "GptOssConfig", _EXPERTS | _LOCAL | _WINDOWS | {"head_dim": 8}, "4.55.0"),
    "granitemoe": Kind("GraniteMoeForCausalLM", "GraniteMoeConfig", _EXPERTS | _LOCAL | _GRANITE, "4.45.0"),
    "phimoe": Kind("PhimoeForCausalLM", "PhimoeConfig", _EXPERTS | _LOCAL, "4.46.0"),
    "ernie4_5_moe": Kind(
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        _EXPERTS | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1, "moe_num_shared_experts": 1},
        "4.54.0",
    ),
    "glm4_moe": Kind(
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        _EXPERTS | _ROUTED | _PARTIAL | {"head_dim": 8, "use_qk_norm": True},
        "4.54.0",
    ),
    "dots1": Kind("Dots1ForCausalLM", "Dots1Config", _EXPERTS | _ROUTED | {"head_dim": 8}, "4.53.0"),
    "minimax_m2": Kind(
        "MiniMaxM2ForCausalLM", "MiniMaxM2Config", _EXPERTS | _LOCAL | {"head_dim": 8, "rotary_dim": 4}, "5.0.0"
    ),
    "solar_open": Kind("SolarOpenForCausalLM", "SolarOpenConfig", _EXPERTS | _ROUTED | {"head_dim": 8}, "5.0.0"),
    "mellum": Kind("MellumForCausalLM", "MellumConfig", _EXPERTS | _NUMBERED | _WINDOWS | {"head_dim": 8}, "5.0.0"),
    "flex_olmo": Kind("FlexOlmoForCausalLM", "FlexOlmoConfig", _EXPERTS | _NUMBERED, "4.57.0"),
    "hunyuan_moe": Kind(
        "HunYuanMoEV1ForCausalLM", "HunYuanMoEV1Config", _EXPERTS | _NUMBERED | {"head_dim": 8, "moe_topk": 2}, "4.56.0"
    ),
    "hyperclovax": Kind("HyperCLOVAXForCausalLM", "HyperCLOVAXConfig", LLAMA_LIKE | _GRANITE, "5.0.0"),
    "ministral3": Kind("Ministral3ForCausalLM", "Ministral3Config", _WIDE_HEADS, "5.0.0"),
    "nanochat": Kind("NanoChatForCausalLM", "NanoChatConfig", LLAMA_LIKE, "5.0.0"),
    "bitnet": Kind("BitNetForCausalLM", "BitNetConfig", LLAMA_LIKE, "4.52.0"),
    "diffllama": Kind("DiffLlamaForCausalLM", "DiffLlamaConfig", LLAMA_LIKE, "4.49.0"),
    "youtu": Kind("YoutuForCausalLM", "YoutuConfig", LLAMA_LIKE | _LATENT, "5.0.0"),
    "deepseek_v2": Kind(
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        _EXPERTS | _ROUTED | _LATENT | {"topk_method": "greedy", "norm_topk_prob": False},
        "4.54.0",
    ),
    "llama4": Kind("Llama4ForCausalLM", "Llama4TextConfig", _LLAMA4, "4.51.0"),
    "gemma3_multimodal": Kind(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": _GEMMA | {"final_logit_softcapping": None},
            "vision_config": _SEEING,
            "mm_tokens_per_image": 4,
            "image_token_index": 94,
            "boi_token_index": 95,
            "eoi_token_index": 96,
        },
        "4.50.0",
    ),
    "mistral3": Kind(
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {
            "text_config": LLAMA_LIKE | {"model_type": "mistral", "head_dim": 8},
            "vision_config": _SEEING | {"model_type": "pixtral"},
            "image_token_index": 96,
        },
        "4.50.0",
    ),
    "llama4_multimodal": Kind(
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        {"text_config": _LLAMA4, "vision_config": _SEEING | _PROJECTED, "image_token_index": 96},
        "4.51.0",
        fails_in=("5.24.0",),  # it reads `image_outputs` of an output that has none
    ),
    "qwen2_vl": Kind("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", _qwen_vl(), "4.45.0"),
    "qwen2_5_vl": Kind("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", _qwen_vl(), "4.49.0"),
    "qwen3_vl": Kind("Qwen3VLForConditionalGeneration", "Qwen3VLConfig", _qwen_vl(head_dim=8), "4.57.0"),
    "qwen3_vl_moe": Kind(
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeConfig",
        _qwen_vl(**_EXPERTS, **_NUMBERED, head_dim=8),
        "4.57.0",
    ),
    "deepseek_v3": Kind("DeepseekV3ForCausalLM", "DeepseekV3Config", _EXPERTS | _ROUTED | _LATENT, "4.51.0"),
    "mamba": Kind("MambaForCausalLM", "MambaConfig", _MAMBA, "4.39.0"),
    "mamba2": Kind("Mamba2ForCausalLM", "Mamba2Config", _MAMBA | _MAMBA2, "4.44.0"),
    "falcon_mamba": Kind("FalconMambaForCausalLM", "FalconMambaConfig", _MAMBA, "4.45.0"),
    "zamba2": Kind(
        "Zamba2ForCausalLM",
        "Zamba2Config",
        _NEOX
        | {"layers_block_type": [_MIXER, "hybrid"] * 2, "num_key_value_heads": 4, "num_mem_blocks": 1}
        | {"mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 16, "chunk_size": 4, "adapter_rank": 4},
        "4.49.0",
    ),
    "jamba": Kind(
        "JambaForCausalLM",
        "JambaConfig",
        _EXPERTS
        | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
        | ({} if _SINCE_5 else {"use_mamba_kernels": False}),  # which need a GPU
        "4.40.0",
    ),
    "bamba": Kind("BambaForCausalLM", "BambaConfig", LLAMA_LIKE | _INNER_MAMBA | {"attn_layer_indices": [1]}, "4.48.0"),
    "lfm2": Kind(
        "Lfm2ForCausalLM", "Lfm2Config", LLAMA_LIKE | {"layer_types": ["conv", "full_attention"] * 2}, "4.54.0"
    ),
    "lfm2_moe": Kind(
        "Lfm2MoeForCausalLM",
        "Lfm2MoeConfig",
        _EXPERTS | _NUMBERED | {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
        "5.0.0",
    ),
    "qwen3_next": Kind(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        _EXPERTS | _NUMBERED | _LINEAR | _HYBRID | {"head_dim": 16, "shared_expert_intermediate_size": 24},
        "4.57.0",
    ),
    "granitemoehybrid": Kind(
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        LLAMA_LIKE | _GRANITE | _INNER_MAMBA | _MIXED | {"shared_intermediate_size": 24, "num_local_experts": 0},
        "4.52.0",
    ),
    "granitemoehybrid_experts": Kind(
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        _EXPERTS | _LOCAL | _GRANITE | _INNER_MAMBA | _MIXED | {"shared_intermediate_size": 24},
        "4.52.0",
    ),
    "recurrent_gemma": Kind(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        LLAMA_LIKE
        | {"lru_width": D, "attention_window_size": 4, "head_dim": 8, "block_types": ["recurrent", "attention"]},
        "5.0.0",  # included since 4.40, and refused before 5.0
    ),
}
ALL_KINDS = MOST_TESTED | _MORE


def part_of(kind: Kind, release: str) -> bool:
    """Return whether a release of transformers includes a kind that it can run."""
    return _numbers(kind.since) <= _numbers(release) and release not in kind.fails_in


def _numbers(release: str) -> list[int]:
    return [int(number) for number in release.split(".")[:3]]


KINDS = {name: kind for name, kind in MOST_TESTED.items() if part_of(kind, transformers.__version__)}
"""The most tested kinds that the installed transformers can build."""
MORE_KINDS = {name: kind for name, kind in _MORE.items() if part_of(kind, transformers.__version__)}
"""The others that it can build."""
WHOLE = (
    "hunyuan",
    "hunyuan_moe",
    "ministral3",
    "nanochat",
    "bitnet",
    "diffllama",
    "youtu",
    "falcon_alibi",
    "bloom",
    "mpt",
)
WHOLE += ("deepseek_v2", "deepseek_v3", "llama4", "llama4_multimodal")
ATTENDING: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "zamba2"), ()),
    **dict.fromkeys(("jamba", "lfm2", "lfm2_moe", "qwen3_next", "recurrent_gemma"), (1, 3)),
    **dict.fromkeys(("granitemoehybrid", "granitemoehybrid_experts"), (1, 3)),
    "bamba": (1,),
}
"""Kinds with layers that mix tokens without attention, and the layers that have attention."""
NO_MLP = ("mamba", "mamba2", "falcon_mamba", "zamba2", "granitemoehybrid_experts")
"""Kinds without MLPs, or whose MLPs no single module writes."""
READ_PADDING = ("recurrent_gemma",) if _SINCE_5 else ("lfm2", "zamba2")
"""Kinds whose recurrent layers read padding on the left."""
WHOLE += tuple(ATTENDING)
"""Kinds whose layers cannot be run part by part."""
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "phimoe", "ernie4_5_moe", "glm4_moe")
EXPERTS += ("dots1", "minimax_m2", "solar_open", "mellum", "flex_olmo", "qwen3_vl_moe")
"""Kinds whose MLPs are mixtures of experts, and whose layers can be run part by part."""
FURTHER = [pytest.param(kind, marks=pytest.mark.further) for kind in MORE_KINDS if kind not in WHOLE]
"""Parameters of tests that a sample of these kinds takes part in, and all of them with ``--all-combinations``."""
FURTHER_WHOLE = [
    pytest.param(kind, marks=[] if kind == "bloom" else pytest.mark.further) for kind in MORE_KINDS if kind in WHOLE
]
"""The same for kinds whose layers cannot be run part by part.

One of them always takes part, because whole passes are code of their own."""
