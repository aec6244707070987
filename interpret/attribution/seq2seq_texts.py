"""How the texts of an encoder-decoder model become tokens: of the source, and of the target that its decoder reads.

Every target begins with tokens that the model does not choose. M2M100, NLLB and mBART mark source and target with
tokens of their languages; Marian models with several target languages begin the source with a flag such as ``>>fra<<``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import GenerateSettings, check_is_model, encoder_decoder_of, language_codes
from interpret.anatomy.changes import Changes
from interpret.errors import InputError, UnsupportedModelError, unknown


@dataclass(frozen=True)
class Seq2SeqTexts:
    """How texts become tokens."""

    tokenizer: PreTrainedTokenizerBase
    begin: tuple[int, ...]
    """The tokens every target begins with: the decoder's start token, and the one that it is forced to write first, if
    any, such as BART's ``<s>`` or a language token. In the first mBART the language token is the start token."""
    source_language: str | None = None
    """None for a model that takes no source language."""
    target_language: str | None = None
    """None for a model with a single target language, or without languages."""
    flags: frozenset[int] = frozenset()
    """All tokens that name a language."""

    def source_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a source, including special tokens and the language token."""
        if self.source_language is None:
            flagged = text if self.target_language is None else f">>{self.target_language}<< {text}"
            return tuple(self.tokenizer(flagged)["input_ids"])
        with self._languages():
            return tuple(self.tokenizer(text)["input_ids"])

    def target_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a target: ``begin`` and those of the text, without the end-of-text token.

        If the tokenizer puts a token before a target that the model has to write itself, it is a token of the text.
        """
        opening, plain = self.opened(text)
        begun = self.begin[len(self.begin) - len(opening) :] == opening
        return (*self.begin, *(() if begun else opening), *plain)

    def opened(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens that the tokenizer puts before a target, and those of its text; neither without a text.

        Raises:
            InputError: if it puts tokens inside the text.
        """
        with self._languages():
            plain = tuple(self.tokenizer(text_target=text, add_special_tokens=False)["input_ids"])
            whole = tuple(self.tokenizer(text_target=text)["input_ids"])
        if not plain:
            return (), ()
        for first in range(len(whole)):
            if whole[first : first + len(plain)] == plain:
                return whole[:first], plain
        raise InputError(
            f"{type(self.tokenizer).__name__} adds special tokens inside the target {text!r}, not only around it; "
            "give its token ids"
        )

    @contextmanager
    def _languages(self) -> Iterator[None]:
        """Set the languages of the tokenizer inside the ``with`` block, if it has any to set."""
        if self.source_language is None:
            yield
            return
        with Changes() as change, change:
            change.set(self.tokenizer, "src_lang", self.source_language)
            change.set(self.tokenizer, "tgt_lang", self.target_language)
            yield


def seq2seq_texts_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source_language: str | None,
    target_language: str | None,
) -> Seq2SeqTexts | None:
    """Check the languages that are given for a model, and return how its texts become tokens.

    Args:
        model: any model.
        tokenizer: its tokenizer.
        source_language: code of the source language, such as ``en`` (M2M100), ``eng_Latn`` (NLLB) or ``en_XX`` (mBART);
            None for other models.
        target_language: code of the target language, such as ``fr``, ``fra_Latn``, ``fr_XX`` or ``fra`` (Marian's flag
            ``>>fra<<``); None for other models, and for Marian models with a single target language.

    Returns:
        How texts become tokens; None for a decoder-only model.

    Raises:
        InputError: for an unknown or missing language, or one this model does not take.
        UnsupportedModelError: for an encoder-decoder model of another family, or a model hidden in a wrapper.
    """
    check_is_model(model)
    languages = encoder_decoder_of(model).languages if model.config.is_encoder_decoder else "none"
    if languages == "none" and not (source_language is None and target_language is None):
        raise InputError("source_language and target_language are for translation models; leave them out")
    if not model.config.is_encoder_decoder:
        return None
    if languages == "tokens":
        return _with_language_tokens(model, tokenizer, source_language, target_language)
    if languages == "flags":
        return _with_flags(model, tokenizer, source_language, target_language)
    forced = GenerateSettings(model, None, {})["forced_bos_token_id"]
    return Seq2SeqTexts(tokenizer, (_start(model), *([] if forced is None else [forced])))


def _start(model: PreTrainedModel) -> int:
    """Return the token with which the decoder starts."""
    given = GenerateSettings(model, None, {})["decoder_start_token_id"]
    start: int | None = getattr(model.config, "decoder_start_token_id", None) if given is None else given
    if start is None:
        raise InputError(
            "the configuration of the model does not say with which token its decoder starts; set "
            "model.generation_config.decoder_start_token_id, of T5 to tokenizer.pad_token_id"
        )
    return start


def _with_language_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None
) -> Seq2SeqTexts:
    codes = language_codes(tokenizer)
    source = _given("source_language", source, list(codes))
    target = _given("target_language", target, list(codes))
    first = codes[target]
    found = Seq2SeqTexts(tokenizer, (first,), source, target, frozenset(codes.values()))
    # The first mBART starts targets with the language token itself: its tokenizer, unlike mBART-50's, puts none before.
    starts_with_language = model.config.model_type == "mbart" and not found.opened("a")[0]
    return found if starts_with_language else replace(found, begin=(_start(model), first))


def _with_flags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None
) -> Seq2SeqTexts:
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
    return Seq2SeqTexts(tokenizer, (_start(model),), None, target, frozenset(flags))


def _given(name: str, code: str | None, codes: Sequence[str]) -> str:
    """Check and return a required language code."""
    if code is None:
        raise InputError(f"{name} is missing; give the language's code, such as {', '.join(codes[:3])}")
    _check(name, code, codes)
    return code


def _check(name: str, code: str, codes: Sequence[str]) -> None:
    if code not in codes:
        raise InputError(unknown(name, code, codes))
