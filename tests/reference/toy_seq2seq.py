"""Toy encoder-decoder models of each family: tiny models with random weights, and the real tokenizer classes."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import catch_warnings, filterwarnings

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50TokenizerFast,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizerFast,
    MT5Config,
    MT5ForConditionalGeneration,
    NllbTokenizer,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PegasusTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5TokenizerFast,
)
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from interpret.anatomy import language_codes
from reference.toy_tokenizers import TEXTS, byte_level_closing, sentence_piece_model

_SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "scale_embedding": True,
}
_T5_SIZES = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,  # several distances in a bucket
    "relative_attention_max_distance": 16,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
MARIAN_LANGUAGES = (">>fra<<", ">>spa<<")


@dataclass(frozen=True)
class Toy:
    """An encoder-decoder model, its tokenizer, and two of its languages."""

    kind: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source_language: str | None
    target_language: str | None
    begin: tuple[str, ...]
    """The tokens with which a target begins, as the documentation of transformers has it."""

    @property
    def languages(self) -> dict[str, str]:
        """The languages it takes, as arguments."""
        both = {"source_language": self.source_language, "target_language": self.target_language}
        return {name: code for name, code in both.items() if code is not None}


def _pieces() -> list[str]:
    """Return the pieces of the toy SentencePiece model without special tokens."""
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=sentence_piece_model())
    return [processor.id_to_piece(i) for i in range(3, len(processor))]


def _vocabulary(specials: list[str]) -> str:
    return json.dumps({piece: number for number, piece in enumerate([*specials, *_pieces()])})


def _m2m100_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    (folder / "vocab.json").write_text(_vocabulary(["<s>", "<pad>", "</s>", "<unk>"]))
    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))


def _nllb_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    # Like the published tokenizers, list the language codes explicitly: transformers 5 does not add them.
    return NllbTokenizer.from_pretrained(folder, additional_special_tokens=FAIRSEQ_LANGUAGE_CODES)


def _marian_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    (folder / "vocab.json").write_text(_vocabulary(["</s>", "<unk>", *MARIAN_LANGUAGES, "<pad>"]))
    spm = str(folder / "spm.model")
    with catch_warnings():
        filterwarnings("ignore", message="Recommended: pip install sacremoses")
        return MarianTokenizer(spm, spm, str(folder / "vocab.json"))


def _mbart_tokenizer(folder: Path, kind: type[PreTrainedTokenizerBase] = MBartTokenizerFast) -> PreTrainedTokenizerBase:
    with catch_warnings():
        filterwarnings("ignore", message="The sentencepiece tokenizer that you are converting to a fast tokenizer")
        return kind.from_pretrained(folder, src_lang="en_XX", tgt_lang="fr_XX")


def _mbart50_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return _mbart_tokenizer(folder, MBart50TokenizerFast)


def _t5_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return T5TokenizerFast.from_pretrained(folder)


def _pegasus_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return PegasusTokenizerFast.from_pretrained(folder)


def _bart_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    core = byte_level_closing().backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special)


@cache
def _unigram_model() -> bytes:
    """Return the file contents of a SentencePiece model with the special tokens of T5 and Pegasus."""
    model = io.BytesIO()
    pytest.importorskip("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def _m2m100(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    # Language codes have ids after the vocabulary; the length of the M2M100 tokenizer does not include them.
    size = max(len(tokenizer), *(number + 1 for number in language_codes(tokenizer).values()))
    config = M2M100Config(vocab_size=size, decoder_start_token_id=2, **_SIZES)
    return M2M100ForConditionalGeneration(config)


def _ends(tokenizer: PreTrainedTokenizerBase, **more: Any) -> dict[str, Any]:
    end = tokenizer.eos_token_id
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": end, "forced_eos_token_id": end}
    return {"vocab_size": len(tokenizer), **ends, **_SIZES, **more}


def _marian(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return MarianMTModel(MarianConfig(**_ends(tokenizer, decoder_start_token_id=tokenizer.pad_token_id)))


def _bart(tokenizer: PreTrainedTokenizerBase, **more: Any) -> PreTrainedModel:
    bos = tokenizer.bos_token_id
    ends = _ends(tokenizer, bos_token_id=bos, decoder_start_token_id=tokenizer.eos_token_id, **more)
    return BartForConditionalGeneration(BartConfig(**ends))


def _bart_forced(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model = _bart(tokenizer, scale_embedding=False)
    model.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    return model


def _mbart(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return MBartForConditionalGeneration(MBartConfig(**_ends(tokenizer, decoder_start_token_id=tokenizer.eos_token_id)))


def _pegasus(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return PegasusForConditionalGeneration(PegasusConfig(**_ends(tokenizer)))


def _t5(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **_T5_SIZES))


def _t5_gated(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """T5 1.1 and FLAN-T5: gated MLPs, states that are not scaled."""
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **_T5_SIZES, **gated))


def _mt5(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return MT5ForConditionalGeneration(MT5Config(vocab_size=len(tokenizer), **_T5_SIZES))


_KINDS: dict[str, tuple[Callable, Callable, str | None, str | None, tuple[str, ...]]] = {
    "m2m100": (_m2m100_tokenizer, _m2m100, "en", "fr", ("</s>", "__fr__")),
    "nllb": (_nllb_tokenizer, _m2m100, "eng_Latn", "fra_Latn", ("</s>", "fra_Latn")),
    "marian": (_marian_tokenizer, _marian, None, "fra", ("<pad>",)),
    "mbart": (_mbart_tokenizer, _mbart, "en_XX", "fr_XX", ("fr_XX",)),
    "mbart50": (_mbart50_tokenizer, _mbart, "en_XX", "fr_XX", ("</s>", "fr_XX")),
    "bart": (_bart_tokenizer, _bart, None, None, ("</s>",)),
    "bart_forced": (_bart_tokenizer, _bart_forced, None, None, ("</s>", "<s>")),
    "pegasus": (_pegasus_tokenizer, _pegasus, None, None, ("<pad>",)),
    "t5": (_t5_tokenizer, _t5, None, None, ("<pad>",)),
    "t5_gated": (_t5_tokenizer, _t5_gated, None, None, ("<pad>",)),
    "mt5": (_t5_tokenizer, _mt5, None, None, ("<pad>",)),
}
KINDS = tuple(_KINDS)


@cache
def toy_seq2seq(kind: str) -> Toy:
    """Return the model and the tokenizer of a family; the weights come from a fixed seed."""
    make_tokenizer, make_model, source, target, begin = _KINDS[kind]
    with TemporaryDirectory() as name:
        for file in ("spm.model", "sentencepiece.bpe.model"):
            (Path(name) / file).write_bytes(sentence_piece_model())
        (Path(name) / "spiece.model").write_bytes(_unigram_model())
        tokenizer = make_tokenizer(Path(name))
    model = make_model(tokenizer).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # not the sinusoidal position embeddings
                parameter.normal_(std=0.3, generator=generator)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(generator=generator)
    assert model.config.is_encoder_decoder
    assert len(tokenizer) <= model.config.vocab_size
    return Toy(kind, model, tokenizer, source, target, begin)
