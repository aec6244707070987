"""Releases of transformers: which are supported, and how they open models and scale embeddings."""

import re
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import UnsupportedModelError

PATCHED, FIRST_CURRENT, NEWEST_TESTED = "4.34.0", "4.57", "5.24.0"
"""The release that can be patched, and the first and the last of the supported current releases."""

_ERRORS_TELL_SHAPES = find_spec("transformers.core_model_loading") is None
"""Whether the error about a weight of another shape names the shapes; since transformers 5 the loading report does."""


@cache
def check_release() -> None:
    """Refuse a release of transformers that is not supported; warn once of one that is newer than those tested.

    Raises:
        UnsupportedModelError: if it is older than 4.34.0, or between 4.34.0 and 4.57.
    """
    found = transformers.__version__
    if found != PATCHED and Version(found) < Version(FIRST_CURRENT):
        raise UnsupportedModelError(
            f"transformers {found} is not supported: use {PATCHED}, or {FIRST_CURRENT} or newer "
            "(pip install --upgrade transformers)"
        )
    if Version(found) > Version(NEWEST_TESTED):
        warnings.warn(
            f"transformers {found} is newer than {NEWEST_TESTED}, the newest release that this package was tested "
            "with; 'interpret check MODEL' compares a model with itself",
            stacklevel=3,
        )


def check_family_release(models: str, since: str) -> None:
    """Refuse models that the installed release of transformers computes wrongly.

    Args:
        models: the models, as the message names them.
        since: the first release that computes them rightly; "" if all do.

    Raises:
        UnsupportedModelError: if an earlier release is installed.
    """
    if since and Version(transformers.__version__) < Version(since):
        raise UnsupportedModelError(
            f"{models} needs transformers {since} or newer, and {transformers.__version__} is installed "
            "(pip install --upgrade transformers)"
        )


def can_be_patched() -> bool:
    """Return whether the installed transformers is the release that ``install_patch.py`` patches."""
    return bool(transformers.__version__ == PATCHED)


def reads_gguf() -> bool:
    """Return whether ``from_pretrained`` reads GGUF files; in transformers 4.34.0 it does not."""
    return hasattr(transformers.utils, "is_gguf_available")


def gguf_arguments() -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` with which the weights of a GGUF file are dequantised.

    Since transformers 5, they stay in the blocks of the file if the package ``kernels`` is installed.
    """
    known = hasattr(transformers, "GgufConfig")
    return {"quantization_config": transformers.GgufConfig(dequantize=True)} if known else {}


def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the mark of a quantised model, which transformers 5 leaves on a model that was dequantised from GGUF.

    A model with this mark is refused by ``save_pretrained``.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    return model


def loading_arguments(dtype: torch.dtype | str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a dtype, with which mismatched weight shapes are reported.

    ``torch_dtype`` is the deprecated name of ``dtype``.
    """
    arguments = {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}
    return arguments if _ERRORS_TELL_SHAPES else {**arguments, "ignore_mismatched_sizes": True}


def auto_class(config: PretrainedConfig) -> Any:
    """Return the class of transformers that opens the model of a configuration with all its parts.

    ``AutoModelForCausalLM`` would open an encoder-decoder model without its encoder, and knows only some of the
    multimodal models, which transformers 4.34.0 lacks.
    """
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    multimodal = getattr(transformers, "AutoModelForImageTextToText", None)
    if multimodal is not None and text_settings(config) is not config and type(config) in multimodal._model_mapping:
        return multimodal
    return transformers.AutoModelForCausalLM


def text_settings(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a configuration about the decoder of texts, which is all of it but in multimodal models.

    Releases without multimodal models have no name for it, and models with several such parts none that is theirs.
    """
    if config.is_encoder_decoder or not hasattr(config, "get_text_config"):
        return config
    try:
        return config.get_text_config(decoder=True)
    except ValueError:
        return config


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the language codes of an M2M100, NLLB or mBART tokenizer, each with the id of its token."""
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known is not None:
        return dict(known)
    # After transformers 4.34.0, the NLLB tokenizer has them among its special tokens.
    codes = [token for token in tokenizer.all_special_tokens if re.fullmatch("[a-z]{3}_[A-Z][a-z]{3}", token)]
    return dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))


def given_embedding_scales(model: PreTrainedModel) -> tuple[float, float]:
    """Return the factors to apply to embeddings before passing them to the encoder and the decoder of a model.

    From ids, these models compute scaled embeddings; most of them do not scale embeddings that are passed in. Where
    the embedding module applies the scale itself (BART, mBART, M2M100 and NLLB after transformers 4.34.0), the factors
    are 1.
    """
    of_source, of_target = (getattr(part, "embed_scale", 1.0) for part in (model.get_encoder(), model.get_decoder()))
    return of_source, 1.0 if _decoder_scales_what_it_is_given(model) else of_target


def _decoder_scales_what_it_is_given(model: PreTrainedModel) -> bool:
    """Return whether a decoder scales embeddings that are passed in, as Marian's and Pegasus' do after 4.34.0."""
    return model.config.model_type in ("marian", "pegasus") and hasattr(transformers, "Cache")


def embedding_scale(model: PreTrainedModel) -> float:
    """Return the factor to apply to the embedding module's output before passing it to a causal LM.

    From ids, XGLM, BioGPT and the decoders of BART and its relatives compute scaled embeddings in transformers 4.34.0,
    but they do not scale embeddings that are passed in. In later releases the embedding module applies the scale.
    """
    if model.config.is_encoder_decoder or hasattr(model.get_input_embeddings(), "embed_scale"):
        return 1.0
    base = model.base_model
    places = (vars(part) for part in (base, getattr(base, "decoder", base)))
    if _decoder_scales_what_it_is_given(model):
        return 1.0
    return next((at["embed_scale"] for at in places if "embed_scale" in at), 1.0)
