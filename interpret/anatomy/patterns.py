"""Attention patterns: make a model compute and return them, and keep only the rows that are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import anatomy_of, text_config
from interpret.anatomy.changes import Changes, passing_thread
from interpret.anatomy.passes import Forward, replaced_forwards


@contextmanager
def reporting_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make a model compute attention probabilities explicitly (eager attention) inside the ``with`` block."""
    config = text_config(model)
    if getattr(config, "_attn_implementation", "eager") in ("eager", None):  # other implementations never store them
        yield
        return
    with Changes() as change, change:
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
            # Without a cache, the pattern is the only 4-D tensor returned besides the hidden states.
            return (output[0], *(_last_row(part) for part in output[1:]))

        return run

    # Hooks would be too late: transformers 4.57 collects the patterns after a module's forward, before its hooks.
    with replaced_forwards(_attention_modules(model), cut):
        yield


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose patterns a decoder returns, layer by layer; two per layer for a translation model.

    Raises:
        UnsupportedModelError: if it is not a translation model, and its family is not supported or a layer has no
            attention.
    """
    if model.config.is_encoder_decoder:
        return [part for layer in model.get_decoder().layers for part in (layer.self_attn, layer.encoder_attn)]
    anatomy = anatomy_of(model)
    return [anatomy.module(layer, "attn_in") for layer in range(len(anatomy.layers))]


def _last_row(part: Any) -> Any:
    """Return a copy of the last row of a pattern [B, H, T, T]; return anything else unchanged."""
    return part[:, :, -1:].clone() if isinstance(part, Tensor) and part.dim() == 4 else part
