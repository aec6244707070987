"""Source and target languages of translation models (M2M100, NLLB, Marian), and the tokens that select them.

M2M100 and NLLB begin the source with a token of its language, and the translation with one of the target language.
Marian models with several target languages begin the source with a flag such as ``>>fra<<``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import check_is_model, language_codes
from interpret.anatomy.changes import Changes
from interpret.errors import InputError, UnsupportedModelError, unknown


@dataclass(frozen=True)
class Languages:
    """Source and target language of a translation."""

    tokenizer: PreTrainedTokenizerBase
    source: str | None
    """None for Marian, whose models take no source language."""
    target: str | None
    """None for Marian models with a single target language."""
    begin: tuple[int, ...]
    """The tokens every translation begins with: decoder start token and, for M2M100 and NLLB, language token."""
    flags: frozenset[int]
    """All tokens that name a language."""

    def source_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text to translate, including special tokens and the language token."""
        if self.source is None:
            flagged = text if self.target is None else f">>{self.target}<< {text}"
            return tuple(self.tokenizer(flagged)["input_ids"])
        with self._set():
            return tuple(self.tokenizer(text)["input_ids"])

    def target_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a translation: ``begin`` and those of the text, without the end-of-text token."""
        with self._set():
            return (*self.begin, *self.tokenizer(text_target=text, add_special_tokens=False)["input_ids"])

    @contextmanager
    def _set(self) -> Iterator[None]:
        """Set the languages of the tokenizer inside the ``with`` block; Marian's tokenizer has none to set."""
        if self.source is None:
            yield
            return
        with Changes() as change, change:
            change.set(self.tokenizer, "src_lang", self.source)
            change.set(self.tokenizer, "tgt_lang", self.target)
            yield


def languages_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None
) -> Languages | None:
    """Check the source and target language of a model, and return them.

    Args:
        model: any model.
        tokenizer: its tokenizer.
        source: code of the source language, such as ``en`` (M2M100) or ``eng_Latn`` (NLLB); None for Marian.
        target: code of the target language, such as ``fr``, ``fra_Latn`` or ``fra`` (Marian's flag ``>>fra<<``);
            None for Marian models with a single target language.

    Returns:
        The languages; None for a model that does not translate.

    Raises:
        InputError: for an unknown or missing language, or one this model does not take.
        UnsupportedModelError: for an encoder-decoder model of another family, or a model hidden in a wrapper.
    """
    check_is_model(model)
    kind = model.config.model_type
    if not model.config.is_encoder_decoder:
        if source is not None or target is not None:
            raise InputError("source_language and target_language are for translation models; leave them out")
        return None
    start = model.config.decoder_start_token_id
    if kind == "marian":
        return _marian(model, tokenizer, source, target, start)
    if kind == "m2m_100":
        codes = language_codes(tokenizer)
        source = _given("source_language", source, list(codes))
        target = _given("target_language", target, list(codes))
        return Languages(tokenizer, source, target, (start, codes[target]), frozenset(codes.values()))
    raise UnsupportedModelError(
        f"encoder-decoder models of type {kind!r} are not supported; supported: m2m_100 (M2M100, NLLB), marian"
    )


def _marian(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None, start: int
) -> Languages:
    if not model.config.share_encoder_decoder_embeddings:
        raise UnsupportedModelError("Marian models with separate source and target vocabularies are not supported")
    if source is not None:
        raise InputError("source_language: Marian models take no source language; leave it out")
    codes = {flag.strip("<>"): flag for flag in tokenizer.supported_language_codes}
    if target is None and codes:
        raise InputError(f"target_language is missing; give one of: {', '.join(codes)}")
    if target is not None:
        if not codes:
            raise InputError("target_language: this Marian model has one target language; leave it out")
        _check("target_language", target, list(codes))
    flags = tokenizer.convert_tokens_to_ids(list(codes.values()))
    return Languages(tokenizer, None, target, (start,), frozenset(flags))


def _given(name: str, code: str | None, codes: Sequence[str]) -> str:
    """Check and return a required language code."""
    if code is None:
        raise InputError(f"{name} is missing; give the language's code, such as {', '.join(codes[:3])}")
    _check(name, code, codes)
    return code


def _check(name: str, code: str, codes: Sequence[str]) -> None:
    if code not in codes:
        raise InputError(unknown(name, code, codes))
