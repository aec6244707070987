"""Tiny random models of every family: L=4 layers, width D=32, vocabulary V=97, built in milliseconds.

All parameters are random, also biases and norm weights, which are usually initialised to 0 and 1. They are large
enough that an edit changes the most likely next token.
"""

from dataclasses import replace
from inspect import signature
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from interpret.anatomy import text_config
from reference.kinds import ALL_KINDS, COMMON, KINDS, LLAMA_LIKE, D, Kind, L, V


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """Build the model of a kind; the seed determines its weights."""
    return _built(ALL_KINDS[kind], seed, L)


def shallow_model(kind: str, n_layers: int) -> PreTrainedModel:
    """Build the model of a kind with fewer layers."""
    name = "n_layer" if "n_layer" in KINDS[kind].shape else "num_hidden_layers"
    return _built(replace(KINDS[kind], shape=KINDS[kind].shape | {name: n_layers}), 0, n_layers)


def _built(wanted: Kind, seed: int, n_layers: int) -> PreTrainedModel:
    shape = wanted.shape
    if "text_config" in shape:
        shape = shape | {"text_config": COMMON | shape["text_config"]}
    else:
        shape = COMMON | shape
    model: PreTrainedModel = getattr(transformers, wanted.model)(getattr(transformers, wanted.config)(**shape)).eval()
    if wanted.family in ("gemma2", "vaultgemma"):
        eager(model)  # the default of 4.57, torch's own attention, ignores the soft cap of the attention logits
    _randomise(model, seed)
    assert text_config(model).num_hidden_layers == n_layers
    assert text_config(model).hidden_size == D
    assert model.get_output_embeddings().weight.shape[0] == V
    assert not model.training
    return model


LONGROPE_LIMIT = 16
"""The length of text beyond which ``longrope_model`` has other rotary embeddings."""


def longrope_model(family: str = "Phi3", vocabulary: int = V) -> PreTrainedModel:
    """Build a tiny model with longrope; the caller checks that the release has it."""
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 4.0, 8.0, 16.0]}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": LONGROPE_LIMIT, "factor": 4.0, **factors}
    shape = COMMON | LLAMA_LIKE | {"vocab_size": vocabulary, "original_max_position_embeddings": LONGROPE_LIMIT}
    config = getattr(transformers, f"{family}Config")(**shape, rope_scaling=rope)
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    _randomise(model, seed=0)
    return model


def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw all parameters anew."""
    generator = torch.Generator().manual_seed(seed)
    norm_weights = {
        id(getattr(module, "weight", None))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        or type(module).__name__.endswith(("RMSNorm", "CohereLayerNorm", "Cohere2LayerNorm"))
    }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
            if id(parameter) in norm_weights:
                parameter.add_(1.0)


def resize_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Resize a model's vocabulary; the added embeddings are initialised as in a new model.

    By default, current releases draw them around the mean of the old embeddings, which makes them nearly equal.
    """
    known = signature(model.resize_token_embeddings).parameters
    model.resize_token_embeddings(size, **({"mean_resizing": False} if "mean_resizing" in known else {}))


def wide_model(kind: str) -> PreTrainedModel:
    """Build a tiny model whose vocabulary is large enough for the toy tokenizers."""
    model = tiny_model(kind)
    resize_vocabulary(model, 450)
    generator = torch.Generator().manual_seed(1)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight.data.normal_(std=0.2, generator=generator)
    return model.eval()  # the new embedding modules are in training mode


def hooks_on(model: nn.Module) -> int:
    """Count the hooks on a model and its submodules, without those of transformers 5 that collect hidden states."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = (hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values())
    return sum(not hook.__module__.startswith("transformers.") for hook in hooks)


def first(output: Any) -> torch.Tensor:
    """Return the hidden states of a layer's output: the output itself or, if it is a tuple, its first element."""
    return output[0] if isinstance(output, tuple) else output


def residual_scale(model: PreTrainedModel) -> float:
    """Return the factor on the outputs of attention and MLP before they are added to the residual stream."""
    return getattr(model.config, "residual_multiplier", 1.0)


def eager(model: PreTrainedModel) -> PreTrainedModel:
    """Switch a model to eager attention, which returns the attention probabilities, as in transformers 4.34.0."""
    model.config._attn_implementation = "eager"
    return model


def sibling(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Build another tiny model of the same family."""
    return tiny_model(next(name for name, kind in KINDS.items() if kind.family == model.config.model_type), seed)


def parts_of_cache(cache: Any) -> list[torch.Tensor]:
    """Return the keys and values of each layer of a KV cache, which is an object or nested tuples."""
    layers = [(layer.keys, layer.values) for layer in cache.layers] if hasattr(cache, "layers") else cache
    return [part for layer in layers for part in layer]
