"""Attention patterns as models report them: that they are computed, and that no more of them is kept than is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import anatomy_of
from interpret.anatomy.passes import Forward, passing_thread, replaced_forwards


@contextmanager
def reporting_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute its attention so that the probabilities exist, for the time of a ``with`` block."""
    config = model.config
    had = getattr(config, "_attn_implementation", "eager")
    if had in ("eager", None):  # any other way never holds them
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = had


@contextmanager
def last_attention_only(model: PreTrainedModel) -> Iterator[None]:
    """Let a decoder keep the attention of the last token alone, [B, H, 1, T], in passes without a cache.

    A model holds the patterns of all its layers until its pass is over; whole, they grow with the square of the text.
    """
    thread = passing_thread()

    def cut(module: nn.Module, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if passing_thread() != thread:
                return output
            # Without a cache, nothing that stands beside the hidden states has four dimensions but the pattern.
            return (output[0], *(_last_row(part) for part in output[1:]))

        return run

    # Not by hooks: transformers 4.57 takes the patterns between a module's forward and its hooks.
    with replaced_forwards(_attention_modules(model), cut):
        yield


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose patterns a decoder reports, layer by layer; of a translation model two a layer.

    Raises:
        UnsupportedModelError: if the model is of no known family, and no translation model.
    """
    if model.config.is_encoder_decoder:
        return [part for layer in model.get_decoder().layers for part in (layer.self_attn, layer.encoder_attn)]
    anatomy = anatomy_of(model)
    return [layer.get_submodule(anatomy.family.attention) for layer in anatomy.layers]


def _last_row(part: Any) -> Any:
    """Return a copy of the last token's attention, of a pattern [B, H, T, T]; of anything else, that itself."""
    return part[:, :, -1:].clone() if isinstance(part, Tensor) and part.dim() == 4 else part
