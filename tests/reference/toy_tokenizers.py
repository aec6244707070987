"""Toy tokenizers of the kinds that language models use, and a word tokenizer.

``TOKENIZERS`` has the two most common kinds, byte-level BPE (GPT-2) and SentencePiece (Llama); ``KINDS`` has all. The
token ids of the word tokenizer can be read from its text: word i is token i.
"""

import io
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizerFast,
    LlamaTokenizer,
    LlamaTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from reference.kinds import V

TEXTS = [
    "The Eiffel Tower is in the city of Paris. I love eating pizza with extra cheese.",
    "[INST] _ _ _ [/INST] Sure, I will repeat for you: Sure, I will summarize the message: hello _",
    "Anna's apples, Naïve café: 東京 is the capital of Japan!",
] * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def byte_level(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that adds no special tokens; ``chat`` gives it a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


@cache
def sentence_piece_model() -> bytes:
    """Return the file contents of a SentencePiece model with byte fallback; skip the test without that package."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def sentence_piece() -> LlamaTokenizerFast:
    """Return a Llama tokenizer, which puts <s> before every text."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(sentence_piece_model())
        return LlamaTokenizerFast.from_pretrained(folder, legacy=True, add_bos_token=True)


def _llama(kind: type[PreTrainedTokenizerBase] = LlamaTokenizerFast, **settings: bool) -> PreTrainedTokenizerBase:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(sentence_piece_model())
        return kind.from_pretrained(folder, **settings)


def _fast(core: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer whose special tokens are <s>, </s> and <unk>."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens)


def _around(core: Tokenizer, template: str = "<s> $A") -> processors.TemplateProcessing:
    """A post-processor that adds special tokens around a text."""
    special = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    return processors.TemplateProcessing(single=template, special_tokens=special)


def _byte_level_core(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


@cache
def byte_level_with_space() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts a space before every text and cuts spaces from its offsets, as in RoBERTa's."""
    core = _byte_level_core(pre_tokenizers.ByteLevel(add_prefix_space=True))
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    return _fast(core)


@cache
def byte_level_closing() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts <s> before and </s> after every text."""
    core = _byte_level_core(pre_tokenizers.ByteLevel(add_prefix_space=False))
    core.post_processor = _around(core, "<s> $A </s>")
    return _fast(core)


@cache
def llama_3() -> PreTrainedTokenizerFast:
    """Byte-level BPE as in Llama 3: <s> before every text, numbers in groups of three digits."""
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(words, "isolated")
    core = _byte_level_core(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), _around(core)])
    return _fast(core)


@cache
def gemma() -> PreTrainedTokenizerFast:
    """SentencePiece as in Gemma: <s> but no space before every text, spaces kept, line breaks as tokens."""
    core = Tokenizer.from_str(sentence_piece().backend_tokenizer.to_str())
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = _around(core)
    core.add_tokens(["\n", "\n\n", "\u2581\u2581"])
    return _fast(core)


@cache
def word_piece() -> PreTrainedTokenizerBase:
    """WordPiece, as in BERT, which does not keep the spaces of a text."""
    with TemporaryDirectory() as folder:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "tower", "##s", "is"]
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(words))
        return BertTokenizerFast.from_pretrained(folder)


def _sentence_pieces() -> dict[str, PreTrainedTokenizerBase]:
    """Return the kinds that are made with sentencepiece; none without that package."""
    if find_spec("sentencepiece") is None:
        return {}
    return {
        "sentence_piece": sentence_piece(),
        "sentence_piece_newer": _llama(legacy=False, add_bos_token=True),
        # Slow in transformers 4.34.0; transformers 5 has a single implementation.
        "sentence_piece_slow": _llama(LlamaTokenizer, legacy=True, add_bos_token=True),
        "sentence_piece_closing": _llama(legacy=True, add_bos_token=True, add_eos_token=True),
        "gemma": gemma(),
    }


KINDS: dict[str, PreTrainedTokenizerBase] = {
    "byte_level": byte_level(),
    "byte_level_with_space": byte_level_with_space(),
    "byte_level_closing": byte_level_closing(),
    "llama_3": llama_3(),
    **_sentence_pieces(),
}
"""A tokenizer of each kind whose tokens keep the text."""
CLOSING = ("byte_level_closing", "sentence_piece_closing")
"""Those that put an end token after every text."""
TOKENIZERS = {kind: tokenizer for kind, tokenizer in KINDS.items() if kind in ("byte_level", "sentence_piece")}


def word_tokenizer(
    words: Sequence[str] = ("<pad>", *(f"w{i}" for i in range(1, V))), *, opens: bool = False, closes: bool = False
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces: word i is token i, and 0 is padding.

    ``opens`` puts token 1 before each text, ``closes`` after it.
    """
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if opens or closes:
        around = f"{words[1]} $A" if opens else f"$A {words[1]}"
        core.post_processor = processors.TemplateProcessing(single=around, special_tokens=[(words[1], 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<pad>")


WORDS = ["first", "<unk>", "<end>", "a", "b"]


def save_words(folder: Path, **special: str) -> None:
    """Save a tokenizer with the vocabulary ``WORDS`` in a folder."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
