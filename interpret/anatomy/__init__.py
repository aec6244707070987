"""Where things are in a model: one table row for each family, and what differs between releases of transformers.

This is the only place that knows the module names of a family and, beside ``generation``, releases of transformers.
They are told apart by what they have, not by their numbers. ``families`` is the table, ``found`` holds a row against a
model. ``attention`` and ``ends`` read what a layer's attention, the embeddings and the head compute with; ``patterns``,
``caches`` and ``calls`` are about passes, ``settings`` about ``generate``, ``opening`` about files and
``translation`` about encoders with decoders.
"""

from interpret.anatomy.anatomy import Anatomy, anatomy_of, base_of
from interpret.anatomy.attention import (
    attention_scale,
    attention_softcap,
    head_width,
    key_heads,
    kind_of_layer,
    numbered,
    rotation,
    window_of,
)
from interpret.anatomy.calls import (
    blank_past,
    cache_tensors,
    check_evaluating,
    first_column,
    input_device,
    keeping_activations,
    layer_input,
    longest_text,
    past_length,
    with_layer_input,
)
from interpret.anatomy.families import FAMILIES, Block, Family, Fused, Parts, Rotary, register_family
from interpret.anatomy.generate_settings import GenerateSettings, generating_by, uncompiled
from interpret.anatomy.patterns import last_attention_only, reporting_attention
from interpret.anatomy.releases import given_embedding_scales, language_codes, loading_arguments, reads_gguf
from interpret.anatomy.vocabulary import capped, embedding_table, logit_cap, logits_of

__all__ = [
    "FAMILIES",
    "Anatomy",
    "Block",
    "Family",
    "Fused",
    "GenerateSettings",
    "Parts",
    "Rotary",
    "anatomy_of",
    "attention_scale",
    "attention_softcap",
    "base_of",
    "blank_past",
    "cache_tensors",
    "capped",
    "check_evaluating",
    "embedding_table",
    "first_column",
    "generating_by",
    "given_embedding_scales",
    "head_width",
    "input_device",
    "keeping_activations",
    "key_heads",
    "kind_of_layer",
    "language_codes",
    "last_attention_only",
    "layer_input",
    "loading_arguments",
    "logit_cap",
    "logits_of",
    "longest_text",
    "numbered",
    "past_length",
    "reads_gguf",
    "register_family",
    "reporting_attention",
    "rotation",
    "uncompiled",
    "window_of",
    "with_layer_input",
]
