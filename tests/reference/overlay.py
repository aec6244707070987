"""Reference implementation of surgery: one sample at a time, no padding, no cache, edits in plain loops.

It does not use ``interpret``: it has its own list of layers and its own plain hooks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.tiny import first


@dataclass
class ReferenceRun:
    """The logits and hidden states of one sample's run."""

    logits: Tensor
    """[T, V]."""
    layer_inputs: list[Tensor]
    """L tensors [T, D]: the input of each layer, after the edits."""
    last_output: Tensor
    """[T, D]: the output of the last layer, before the final norm."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a causal LM."""
    if model.config.model_type in ("gpt2", "gptj", "codegen", "falcon", "gpt_bigcode", "gpt_neo", "bloom"):
        return model.transformer.h
    if model.config.model_type == "mpt":
        return model.transformer.blocks
    if model.config.model_type in ("mamba", "mamba2", "falcon_mamba"):
        return model.backbone.layers
    if model.config.model_type == "biogpt":
        return model.biogpt.layers
    if model.config.model_type == "gpt_neox":
        return model.gpt_neox.layers
    if model.config.model_type == "opt":
        return model.model.decoder.layers
    if model.config.model_type == "llama4":
        return model.language_model.model.layers
    if hasattr(model.config, "text_config"):  # the other multimodal models
        return model.model.language_model.layers
    return model.model.layers


def overlaid(hidden: Tensor, row: int, layer: int, info: Mapping[Any, Any] | None, n_tokens: int) -> Tensor:
    """Return a copy of ``hidden``, [B, T, D], with the edits of one sample at one layer applied to one row."""
    hidden = hidden.clone()
    if info is None or layer not in info:
        return hidden
    positions, vectors, *options = info[layer]
    choice = {**info, **(options[0] if options else {})}
    strength = choice.get("overlay_strength", 1.0)
    mode = choice.get("replacing_mode", "normalized")
    for slot, position in enumerate(positions):
        if position < 0:
            position += n_tokens
        old = hidden[row, position].clone()
        vector = vectors[0, slot].to(hidden.dtype)
        if mode == "normalized":
            hidden[row, position] = strength * vector + (1 - strength) * old
        else:
            hidden[row, position] = old + strength * vector
    return hidden


def reference_forward(
    model: PreTrainedModel, row_ids: Sequence[int], info: Mapping[Any, Any] | None, n_prompt: int | None = None
) -> ReferenceRun:
    """Run one sample; negative positions count from the end of the prompt, its first ``n_prompt`` tokens."""
    layers, inputs, outputs, handles = decoder_layers(model), [], [], []

    def edit_layer(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = overlaid(hidden, 0, index, info, n_prompt or len(row_ids))
            inputs.append(hidden[0])
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(edit_layer(index), with_kwargs=True))
    handles.append(layers[-1].register_forward_hook(lambda module, args, output: outputs.append(first(output)[0])))
    try:
        logits = model(input_ids=torch.tensor([list(row_ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    assert len(inputs) == len(layers)
    return ReferenceRun(logits, inputs, outputs[0])


def reference_greedy(
    model: PreTrainedModel, row_ids: Sequence[int], info: Mapping[Any, Any] | None, n_new: int
) -> list[int]:
    """Append the most likely token ``n_new`` times, each from a full forward pass over all tokens so far."""
    ids = list(row_ids)
    for _ in range(n_new):
        with torch.no_grad():
            ids.append(int(reference_forward(model, ids, info, len(row_ids)).logits[-1].argmax()))
    return ids


@contextmanager
def edited_model(model: PreTrainedModel, infos: Sequence[Mapping[Any, Any] | None], n_prompt: int) -> Iterator[None]:
    """Apply the edits in every forward pass of more than one token.

    Valid for a batch of unpadded prompts of ``n_prompt`` > 1 tokens, if later passes of the stock decoding contain
    either one token (with a KV cache) or all tokens (without), and the rows of one sample are adjacent.
    """
    assert n_prompt > 1

    def edit_layer(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[1] == 1:
                return None
            copies, rest = divmod(hidden.shape[0], len(infos))
            assert rest == 0
            for row in range(hidden.shape[0]):
                hidden = overlaid(hidden, row, index, infos[row // copies], n_prompt)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    handles = [
        layer.register_forward_pre_hook(edit_layer(index), with_kwargs=True)
        for index, layer in enumerate(decoder_layers(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
