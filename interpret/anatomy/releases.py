"""Opening a model: which files a release reads, and how it is asked for what is in them."""

import re
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ERRORS_TELL_SHAPES = find_spec("transformers.core_model_loading") is None
"""Whether the error over a weight of another shape says which; from transformers 5 on the loading report does."""


def reads_gguf() -> bool:
    """Whether ``from_pretrained`` reads GGUF files, which transformers 4.34.0 does not."""
    return hasattr(transformers.utils, "is_gguf_available")


def loading_arguments(dtype: torch.dtype | str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a number format, and for shapes to be told where they differ.

    ``torch_dtype`` is an old name, which is going.
    """
    arguments = {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}
    return arguments if _ERRORS_TELL_SHAPES else {**arguments, "ignore_mismatched_sizes": True}


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the languages a tokenizer of M2M100 or NLLB knows, each with the token that names it."""
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known is not None:
        return dict(known)
    # NLLB's of later releases than 4.34.0 has them among its special tokens.
    codes = [token for token in tokenizer.all_special_tokens if re.fullmatch("[a-z]{3}_[A-Z][a-z]{3}", token)]
    return dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))


def given_embedding_scales(model: PreTrainedModel) -> tuple[float, float]:
    """Return what embeddings must be multiplied by before a translation model's encoder and decoder are given them.

    Given ids, these models scale their embeddings; given embeddings, most leave it out. Where the embeddings scale
    themselves (M2M100, NLLB of later releases than 4.34.0) nothing is left to do.
    """
    of_source, of_target = (getattr(part, "embed_scale", 1.0) for part in (model.get_encoder(), model.get_decoder()))
    scales_what_it_is_given = model.config.model_type == "marian" and hasattr(transformers, "Cache")
    return of_source, 1.0 if scales_what_it_is_given else of_target
