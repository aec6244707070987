"""Reference implementation of patched runs: one full forward pass with plain hooks per cell, nothing shared.

It does not use ``interpret``: it has its own table of every family's modules and its own hooks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.mixtures import forward_with, mlp_of
from reference.overlay import decoder_layers

# Modules of a layer: attention, its output projection (input: heads), MLP, its output projection (input: neurons).
MODULES = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "cohere", "gemma", "vaultgemma", "ministral"),
            *("olmo", "smollm3", "seed_oss", "cwm", "helium", "ernie4_5", "glm", "arcee", "jais2", "nemotron"),
            *("apertus", "hunyuan_v1_dense", "cohere2", "stablelm", "ministral3", "bitnet", "diffllama", "youtu"),
            # The neurons of a mixture of experts are those of ``mixtures``; its heads and output are the same modules.
            *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "phimoe", "ernie4_5_moe"),
            *("glm4_moe", "dots1", "minimax_m2", "solar_open", "mellum", "hunyuan_v1_moe", "deepseek_v2"),
            *("deepseek_v3", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
        ),
        ("self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"),
    ),
    **dict.fromkeys(("llama4", "llama4_text"), ("self_attn", "self_attn.o_proj", "feed_forward", "")),
    "granitemoe": ("self_attn", "self_attn.o_proj", "block_sparse_moe", ""),
    "phi": ("self_attn", "self_attn.dense", "mlp", "mlp.fc2"),
    "nanochat": ("self_attn", "self_attn.o_proj", "mlp", "mlp.fc2"),
    "starcoder2": ("self_attn", "self_attn.o_proj", "mlp", "mlp.c_proj"),
    "persimmon": ("self_attn", "self_attn.dense", "mlp", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention", "self_attention.dense", "mlp", "mlp.dense_4h_to_h"),
    "bloom": ("self_attention.dense", "self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_4h_to_h"),
    "mpt": ("attn", "attn.out_proj", "ffn.down_proj", "ffn.down_proj"),
    # In these families, outputs are normalised before they are added to the residual stream.
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "gemma3", "olmo2", "olmo3", "exaone4", "flex_olmo"),
        ("post_attention_layernorm", "self_attn.o_proj", "post_feedforward_layernorm", "mlp.down_proj"),
    ),
    "glm4": ("post_self_attn_layernorm", "self_attn.o_proj", "post_mlp_layernorm", "mlp.down_proj"),
    "hyperclovax": ("post_norm1", "self_attn.o_proj", "post_norm2", "mlp.down_proj"),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("attn", "attn.c_proj", "mlp", "mlp.c_proj")),
    "gpt_neo": ("attn", "attn.attention.out_proj", "mlp", "mlp.c_proj"),
    **dict.fromkeys(("gptj", "codegen"), ("attn", "attn.out_proj", "mlp", "mlp.fc_out")),
    "gpt_neox": ("attention", "attention.dense", "mlp", "mlp.dense_4h_to_h"),
    **dict.fromkeys(("opt", "xglm", "biogpt"), ("self_attn", "self_attn.out_proj", "fc2", "fc2")),
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "phimoe", "ernie4_5_moe", "glm4_moe")
MIXTURES += ("dots1", "minimax_m2", "solar_open", "mellum", "hunyuan_v1_moe", "deepseek_v2", "deepseek_v3", "flex_olmo")
MIXTURES += ("jamba", "qwen3_next", "lfm2_moe", "llama4", "llama4_text", "qwen3_vl_moe")
# What the layers without attention have in its place, the attention of the others, and the MLP of all.
MIXERS = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), ("mixer", "", "")),
    "zamba2": ("mamba", "", ""),
    **dict.fromkeys(("jamba", "bamba"), ("mamba", "self_attn", "feed_forward")),
    **dict.fromkeys(("lfm2", "lfm2_moe"), ("conv", "self_attn", "feed_forward")),
    "qwen3_next": ("linear_attn", "self_attn", "mlp"),
    "granitemoehybrid": ("mamba", "self_attn", "shared_mlp"),
    "recurrent_gemma": ("temporal_block", "temporal_block", "mlp_block"),
}
Edit = Callable[[Tensor], Tensor | None]
"""Takes the values of a site, [S, T, width]; returns the new values, or None to keep the old ones."""


def hooked(model: PreTrainedModel, layer: int, site: str, edit: Edit, n_samples: int) -> Any:
    """Register an edit of one site of one layer, on a module's output or (heads and neurons) its input."""
    block = decoder_layers(model)[layer]
    if site == "neurons" and model.config.model_type in MIXTURES:
        return _edited_mixture(mlp_of(block), edit, n_samples)
    if model.config.model_type in MIXERS:
        names = dict(zip(("mixer_out", "attn_out", "mlp_out"), MIXERS[model.config.model_type], strict=True))
    else:
        names = dict(zip(("attn_out", "heads", "mlp_out", "neurons"), MODULES[model.config.model_type], strict=True))
    if site == "mixer_out" and hasattr(block, "mamba_decoder"):  # Zamba2's layers that also have shared attention
        names[site] = "mamba_decoder.mamba"
    elif site == "mixer_out" and getattr(block, names[site], None) is None:  # a layer with attention
        names[site] = names["attn_out"]
    if names.get(site) == "mlp" and hasattr(block, "block_sparse_moe"):  # before transformers 5
        names[site] = "block_sparse_moe"
    module = block.get_submodule("" if site == "resid_post" else names[site])

    def edited(value: Tensor) -> Tensor:
        # The MLP of OPT works on [S * T, width].
        after = edit(value.view(n_samples, -1, value.shape[-1]))
        return value if after is None else after.view(value.shape)

    def on_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (edited(args[0]), *args[1:])

    def on_output(module: nn.Module, args: Any, output: Any) -> Any:
        return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

    if site in ("heads", "neurons"):
        return module.register_forward_pre_hook(on_input)
    return module.register_forward_hook(on_output)


class _Undone:
    """What undoes an edit, as the handle of a hook does."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self.remove = remove


def _edited_mixture(mlp: Any, edit: Edit, n_samples: int) -> _Undone:
    def edited(value: Tensor) -> Tensor | None:
        after = edit(value.view(n_samples, -1, value.shape[-1]))
        return None if after is None else after.view(value.shape)

    mlp.forward = forward_with(mlp, edited)
    return _Undone(lambda: vars(mlp).pop("forward"))


def run(model: PreTrainedModel, embeddings: Tensor, edits: Mapping[tuple[int, str], Edit]) -> Tensor:
    """Return the logits, [S, T, V], of a forward pass with the given edits, one per (layer, site)."""
    with ExitStack() as stack, torch.no_grad():
        for (layer, site), edit in edits.items():
            stack.callback(hooked(model, layer, site, edit, len(embeddings)).remove)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)  # Qwen3-VL of transformers 4.57 needs one
        return model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits


def recorded(model: PreTrainedModel, embeddings: Tensor, sites: Iterable[str]) -> dict[tuple[int, str], Tensor]:
    """Return the values of some sites in every layer, [S, T, width], from a pass without edits."""
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str]) -> Edit:
        return lambda value: seen.__setitem__(key, value.clone())

    for site in sites:
        run(model, embeddings, {(layer, site): keep((layer, site)) for layer in range(len(decoder_layers(model)))})
    return seen


def head_width(model: PreTrainedModel) -> int:
    """Return the width of a head."""
    config = getattr(model.config, "text_config", model.config)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def patched(
    model: PreTrainedModel,
    base: Tensor,
    donor: Tensor,
    *,
    site: str,
    token: int,
    layers: Sequence[int],
    unit: int | None = None,
    pins: Mapping[str, Sequence[int]] | None = None,
) -> Tensor:
    """Return the logits, [S, T, V], of the base runs with activations of the donor runs restored at one token.

    Args:
        model: a causal LM.
        base: [S, T, width] word embeddings of the runs to patch.
        donor: [S, T, width] word embeddings of the runs whose values are restored; [1, T, width] if all are the same.
        site: ``resid_post``, ``attn_out``, ``mlp_out``, ``heads`` or ``neurons``.
        token: position at which values are restored.
        layers: which layers are restored; -1 (only for ``resid_post``) is the input of layer 0.
        unit: index of the head or neuron.
        pins: for ``attn_out`` and ``mlp_out``, the layers in which the output is held at the value of the base run.
    """
    good, bad = recorded(model, donor, [site]), recorded(model, base, pins or [])
    width = {"heads": head_width(model), "neurons": 1}.get(site) if unit is not None else None
    features = slice(None) if width is None else slice(unit * width, (unit + 1) * width)

    def write(values: Tensor, features: slice) -> Edit:
        def edit(value: Tensor) -> Tensor:
            value = value.clone()
            value[:, token, features] = values[:, token, features]
            return value

        return edit

    edits = {(layer, pin): write(bad[layer, pin], slice(None)) for pin in pins or {} for layer in pins[pin]}
    edits |= {(layer, site): write(good[layer, site], features) for layer in layers if layer >= 0}
    if -1 in layers and model.config.model_type == "zamba2":
        # Its attention also reads the word embeddings; only the input of layer 0 is restored.
        with ExitStack() as stack:
            first, values = decoder_layers(model)[0], write(donor, slice(None))
            handle = first.register_forward_pre_hook(lambda module, args: (values(args[0]), *args[1:]))
            stack.callback(handle.remove)
            return run(model, base, edits)
    if -1 in layers:
        # Both runs add the same position embeddings, so restoring word embeddings restores the input of layer 0.
        base = base.clone()
        base[:, token] = donor[:, token]
    return run(model, base, edits)
