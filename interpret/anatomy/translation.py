"""Translation models, whose encoders, decoders and tokenizers differ between releases of transformers."""

import re

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
