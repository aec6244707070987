"""Attention patterns: make a model compute and return them, and keep only the rows that are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import anatomy_of, text_config
from interpret.anatomy.changes import Changes, passing_thread
from interpret.anatomy.encoder_decoders import decoder_attention
from interpret.anatomy.passes import Forward, replaced_forwards


@contextmanager
def reporting_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make a model compute attention probabilities explicitly (eager attention) inside the ``with`` block."""
    config = text_config(model)
    with Changes() as change, change:
        if getattr(config, "_attn_implementation", "eager") not in ("eager", None):  # others never return them
            change.set(config, "_attn_implementation", "eager")
        yield


@contextmanager
def last_attention_only(model: PreTrainedModel) -> Iterator[None]:
    """Make a decoder keep only the attention of the last token, [B, H, 1, T], in passes without a cache.

    A model keeps the patterns of all layers until its pass ends; their full size is quadratic in the text length.
    """
    thread = passing_thread()

    def cut(module: nn.Module, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if passing_thread() != thread:
                return output
            return _with_last_row(output)

        return run

    # Hooks would be too late: transformers 4.57 collects the patterns after a module's forward, before its hooks.
    with replaced_forwards(_attention_modules(model), cut):
        yield


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose patterns a decoder returns, layer by layer; two per layer for an encoder-decoder.

    Raises:
        UnsupportedModelError: if the model's family is not supported, or a layer has no attention.
    """
    if model.config.is_encoder_decoder:
        return decoder_attention(model)
    anatomy = anatomy_of(model)
    return [anatomy.module(layer, "attn_in") for layer in range(len(anatomy.layers))]


def _with_last_row(output: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what an attention module returned with a copy of the last row of its pattern, [B, H, T, T].

    Without a cache, the pattern is the last 4-D tensor; before it, T5 returns the position biases for the next layers.
    """
    places = [place for place, part in enumerate(output) if place and isinstance(part, Tensor) and part.dim() == 4]
    if not places:
        return output
    parts = list(output)
    parts[places[-1]] = parts[places[-1]][:, :, -1:].clone()
    return tuple(parts)
