"""Toy translation models of the three families: tiny models with random weights, and the real tokenizer classes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from warnings import catch_warnings, filterwarnings

import pytest
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    NllbTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from interpret.anatomy import language_codes
from reference.toy_tokenizers import sentence_piece_model

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
MARIAN_LANGUAGES = (">>fra<<", ">>spa<<")


@dataclass(frozen=True)
class Toy:
    """A translation model, its tokenizer, and two of its languages."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source_language: str | None
    target_language: str


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
    (folder / "sentencepiece.bpe.model").write_bytes(sentence_piece_model())
    # Like the published tokenizers, list the language codes explicitly: transformers 5 does not add them.
    return NllbTokenizer.from_pretrained(folder, additional_special_tokens=FAIRSEQ_LANGUAGE_CODES)


def _marian_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    (folder / "vocab.json").write_text(_vocabulary(["</s>", "<unk>", *MARIAN_LANGUAGES, "<pad>"]))
    spm = str(folder / "spm.model")
    with catch_warnings():
        filterwarnings("ignore", message="Recommended: pip install sacremoses")
        return MarianTokenizer(spm, spm, str(folder / "vocab.json"))


def _m2m100(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    # Language codes have ids after the vocabulary; the length of the M2M100 tokenizer does not include them.
    size = max(len(tokenizer), *(number + 1 for number in language_codes(tokenizer).values()))
    config = M2M100Config(vocab_size=size, decoder_start_token_id=2, **_SIZES)
    return M2M100ForConditionalGeneration(config)


def _marian(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    pad = tokenizer.pad_token_id
    ends = {"pad_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": 0, "decoder_start_token_id": pad}
    return MarianMTModel(MarianConfig(vocab_size=len(tokenizer), **ends, **_SIZES))


_KINDS: dict[str, tuple[Callable, Callable, str | None, str]] = {
    "m2m100": (_m2m100_tokenizer, _m2m100, "en", "fr"),
    "nllb": (_nllb_tokenizer, _m2m100, "eng_Latn", "fra_Latn"),
    "marian": (_marian_tokenizer, _marian, None, "fra"),
}
KINDS = tuple(_KINDS)


@cache
def toy_translation(kind: str) -> Toy:
    """Return the model and the tokenizer of a family; the weights come from a fixed seed."""
    make_tokenizer, make_model, source, target = _KINDS[kind]
    with TemporaryDirectory() as name:
        (Path(name) / "spm.model").write_bytes(sentence_piece_model())
        tokenizer = make_tokenizer(Path(name))
    model = make_model(tokenizer).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # not the sinusoidal position embeddings
                parameter.normal_(std=0.3, generator=generator)
        if kind == "marian":
            model.final_logits_bias.normal_(generator=generator)
    assert model.config.is_encoder_decoder
    assert len(tokenizer) <= model.config.vocab_size
    return Toy(model, tokenizer, source, target)
