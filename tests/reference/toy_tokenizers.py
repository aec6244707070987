"""Toy tokenizers of the two common kinds, byte-level BPE (GPT-2) and SentencePiece (Llama), and a word tokenizer.

The token ids of the word tokenizer can be read from its text: word i is token i.
"""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
from reference.tiny import V
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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
    """Return the file contents of a SentencePiece model with byte fallback."""
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


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {"byte_level": byte_level(), "sentence_piece": sentence_piece()}


def word_tokenizer(
    words: Sequence[str] = ("<pad>", *(f"w{i}" for i in range(1, V))), *, opens: bool = False
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces: word i is token i, and 0 is padding.

    ``opens`` puts token 1 before each text.
    """
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if opens:
        core.post_processor = processors.TemplateProcessing(single=f"{words[1]} $A", special_tokens=[(words[1], 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<pad>")
