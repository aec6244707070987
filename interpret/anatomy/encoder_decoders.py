"""Encoder-decoder models: the modules of each family, and a pass over the word embeddings of both sides.

Their predictions can be attributed; analyses of layers take decoder-only models, see ``anatomy_of``. ``agreement``
compares logits computed here with the model's own. Shapes: B rows, S source tokens, T decoder tokens, D hidden width.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.releases import given_embedding_scales
from interpret.errors import UnsupportedModelError


@dataclass(frozen=True)
class EncoderDecoder:
    """A family of encoder-decoder models."""

    models: str
    """What its models are called."""
    languages: Literal["none", "tokens", "flags"] = "none"
    """How its models are told what to translate: not at all; by a token of the source language in the source and one
    of the target language at the beginning of the target; by a flag such as ``>>fra<<`` before the source."""
    layers: str = "layers"
    """The list of layers of the encoder, and of the decoder."""
    own_attention: str = "self_attn"
    """The attention of a decoder's layer to the decoder's tokens, relative to the layer."""
    cross_attention: str = "encoder_attn"
    """Its attention to the source."""
    scaled_if: tuple[str, ...] = ()
    """Settings, of which the first that a configuration has tells whether the decoder's states are multiplied by
    D ** -0.5 before they are unembedded."""


_T5 = EncoderDecoder(
    "T5, FLAN-T5",
    layers="block",
    own_attention="layer.0.SelfAttention",
    cross_attention="layer.1.EncDecAttention",
    # T5 scales states if embeddings and unembedding were trained as one matrix; T5 1.1 and FLAN-T5 do not. transformers
    # 5 ties the two in any case, and has a setting of its own for the scale.
    scaled_if=("scale_decoder_outputs", "tie_word_embeddings"),
)
ENCODER_DECODERS = {
    "bart": EncoderDecoder("BART"),
    "m2m_100": EncoderDecoder("M2M100, NLLB", languages="tokens"),
    "marian": EncoderDecoder("Marian", languages="flags"),
    "mbart": EncoderDecoder("mBART", languages="tokens"),
    "mt5": replace(_T5, models="mT5", scaled_if=()),
    "pegasus": EncoderDecoder("Pegasus"),
    "t5": _T5,
}
"""The families by ``model_type``."""


def encoder_decoder_of(model: PreTrainedModel) -> EncoderDecoder:
    """Return the table row of an encoder-decoder model.

    Raises:
        UnsupportedModelError: if its family is not in the table.
    """
    kind = model.config.model_type
    if kind not in ENCODER_DECODERS:
        known = ", ".join(f"{name} ({row.models})" for name, row in ENCODER_DECODERS.items())
        raise UnsupportedModelError(f"encoder-decoder models of type {kind!r} are not supported; supported: {known}")
    return ENCODER_DECODERS[kind]


def stacked_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of encoder and decoder."""
    return [layer for stack in (model.get_encoder(), model.get_decoder()) for layer in _layers(model, stack)]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of the decoder."""
    return _layers(model, model.get_decoder())


def _layers(model: PreTrainedModel, stack: nn.Module) -> list[nn.Module]:
    return list(stack.get_submodule(encoder_decoder_of(model).layers).children())


def decoder_attention(model: PreTrainedModel) -> list[nn.Module]:
    """Return the attention modules of the decoder, layer by layer: to its own tokens, and to the source."""
    row = encoder_decoder_of(model)
    paths = (row.own_attention, row.cross_attention)
    return [layer.get_submodule(path) for layer in decoder_layers(model) for path in paths]


def decode(model: PreTrainedModel, source: Tensor, text: Tensor, **options: bool) -> Any:
    """Run encoder and decoder on word embeddings, [B, S, D] and [B, T, D]; return the output of the decoder."""
    of_source, of_text = given_embedding_scales(model)
    states = model.get_encoder()(inputs_embeds=source * of_source)[0]
    decoder = model.get_decoder()
    return decoder(inputs_embeds=text * of_text, encoder_hidden_states=states, use_cache=False, **options)


def unembedding_scale(model: PreTrainedModel) -> float:
    """Return the factor on states before they are unembedded; 1 in most families."""
    row = ENCODER_DECODERS.get(model.config.model_type) if model.config.is_encoder_decoder else None
    for setting in row.scaled_if if row else ():
        if hasattr(model.config, setting):
            return float(model.config.d_model**-0.5) if getattr(model.config, setting) else 1.0
    return 1.0
