"""The languages of a translation model: how M2M100, NLLB and Marian are told what to read and what to write.

M2M100 and NLLB begin the source with a token of its language, and the translation with one of the target language.
Marian models that write several languages begin the source with a flag such as ``>>fra<<``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import language_codes
from interpret.errors import InputError, UnsupportedModelError, unknown


@dataclass(frozen=True)
class Languages:
    """What a model is to read and to write."""

    tokenizer: PreTrainedTokenizerBase
    source: str | None
    """None for Marian, whose models know it."""
    target: str | None
    """None for Marian models that write one language."""
    begin: tuple[int, ...]
    """The tokens every translation begins with: the start of decoding, and the language where the decoder reads it."""
    flags: frozenset[int]
    """All tokens that name a language."""

    def source_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text to translate, special tokens and language included."""
        if self.source is None:
            flagged = text if self.target is None else f">>{self.target}<< {text}"
            return tuple(self.tokenizer(flagged)["input_ids"])
        with self._set():
            return tuple(self.tokenizer(text)["input_ids"])

    def target_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a translation: what it begins with, and the text's, without an end."""
        with self._set():
            return (*self.begin, *self.tokenizer(text_target=text, add_special_tokens=False)["input_ids"])

    @contextmanager
    def _set(self) -> Iterator[None]:
        """Set the tokenizer's languages for the time of a ``with`` block; Marian's has none to set."""
        if self.source is None:
            yield
            return
        before = self.tokenizer.src_lang, self.tokenizer.tgt_lang
        try:
            self.tokenizer.src_lang, self.tokenizer.tgt_lang = self.source, self.target
            yield
        finally:
            self.tokenizer.src_lang, self.tokenizer.tgt_lang = before


def languages_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None
) -> Languages | None:
    """Check the languages a model is to read and write.

    Args:
        model: any.
        tokenizer: its tokenizer.
        source: code of the source language, such as ``en`` (M2M100) or ``eng_Latn`` (NLLB); None for Marian.
        target: code of the target language, such as ``fr``, ``fra_Latn`` or ``fra`` (Marian's flag ``>>fra<<``);
            None for Marian models that write one language.

    Returns:
        None for a model that does not translate.

    Raises:
        InputError: for a language the model does not know or cannot be told, or one that is missing.
        UnsupportedModelError: for an encoder-decoder model of another family.
    """
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
        for name, code in (("source_language", source), ("target_language", target)):
            if code is None:
                raise InputError(f"{name} is missing; give the language's code, such as {', '.join(list(codes)[:3])}")
            _check(name, code, list(codes))
        assert target is not None
        return Languages(tokenizer, source, target, (start, codes[target]), frozenset(codes.values()))
    raise UnsupportedModelError(
        f"{kind!r} is no encoder-decoder model that can be attributed; these are: m2m_100 (M2M100, NLLB), marian"
    )


def _marian(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None, start: int
) -> Languages:
    if not model.config.share_encoder_decoder_embeddings:
        raise UnsupportedModelError("this Marian model has a vocabulary for each side, which cannot be attributed yet")
    if source is not None:
        raise InputError("source_language: a Marian model knows the language it reads; leave it out")
    codes = {flag.strip("<>"): flag for flag in tokenizer.supported_language_codes}
    if target is None and codes:
        raise InputError(f"target_language is missing; this model writes {', '.join(codes)}")
    if target is not None:
        if not codes:
            raise InputError("target_language: this Marian model writes one language; leave it out")
        _check("target_language", target, list(codes))
    flags = tokenizer.convert_tokens_to_ids(list(codes.values()))
    return Languages(tokenizer, None, target, (start,), frozenset(flags))


def _check(name: str, code: str, codes: Sequence[str]) -> None:
    if code not in codes:
        raise InputError(unknown(name, code, codes))
