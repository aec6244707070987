"""Llama models with random weights, made on the device, and a tokenizer for them: nothing is downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Shape:
    """The size of a Llama model."""

    name: str
    layers: int
    width: int
    neurons: int
    heads: int
    key_heads: int
    vocabulary: int
    states: int
    """Number of states that the benchmark interprets."""


LARGE = (
    Shape("1B", layers=22, width=2048, neurons=5632, heads=32, key_heads=4, vocabulary=32000, states=64),
    Shape("7B", layers=32, width=4096, neurons=11008, heads=32, key_heads=32, vocabulary=32000, states=64),
)
"""The shapes of TinyLlama-1.1B and Llama-2-7B, for a GPU."""
SMALL = (
    Shape("1B in small", layers=4, width=64, neurons=176, heads=4, key_heads=2, vocabulary=500, states=16),
    Shape("7B in small", layers=6, width=64, neurons=172, heads=4, key_heads=4, vocabulary=500, states=16),
)
"""The same in small, for a CPU."""


def made(shape: Shape, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a model with random weights on a device, always with the same ones on the same device.

    The weights keep the size of states from layer to layer; logits have a standard deviation of about 3, so that
    tokens differ in probability as in a trained model.
    """
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.device(device), _default(dtype):
        model = LlamaForCausalLM(config).eval()
    generator = torch.Generator(device).manual_seed(0)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(generator=generator)
            elif isinstance(module, nn.Linear):
                size = 3.0 if module is head else 1.0
                module.weight.normal_(std=size / module.in_features**0.5, generator=generator)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    return model.requires_grad_(False)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Make a dtype that of new parameters, inside the ``with`` block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces: the word w7 is token 7."""
    core = Tokenizer(models.WordLevel({f"w{number}": number for number in range(vocabulary)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", pad_token="w0")


def words(vocabulary: int, count: int, seed: int) -> list[str]:
    """Return different random words."""
    chance = torch.Generator().manual_seed(seed)
    return [f"w{number}" for number in torch.randperm(vocabulary - 10, generator=chance)[:count].add(10).tolist()]
