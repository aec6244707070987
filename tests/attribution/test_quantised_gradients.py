"""Gradients of models with quantised weights, compared with those of the models with their own weights."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interpret import attribute
from interpret.models.quantize import quantize_
from reference.devices import DEVICES
from reference.plain_attribution import N_PROMPT, PROMPT, TARGET, TOKENIZER

pytest.importorskip("bitsandbytes")


def model_for_quantising(kind):
    """4 bits need a width of 64; weights are larger than in tiny models, so that outputs differ."""
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=450, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.1,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(vocab_size=450, n_embd=64, n_layer=2, n_head=4, n_positions=32, initializer_range=0.1)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.gpu
@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("bits", "cosine"), [(8, 0.99), (4, 0.75)])
@pytest.mark.parametrize("method", ["input_x_gradient", "layer_gradient_x_activation", "integrated_gradients"])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_come_through_quantised_weights(kind, bits, cosine, method, device):
    options = {"method": method, "attributed_fn": "logit"} | (
        {"baseline": "mean"} if method == "integrated_gradients" else {}
    )
    # The full-precision model stays on the CPU, so that devices are compared too.
    models = quantize_(model_for_quantising(kind), bits, device=device).to(device), model_for_quantising(kind)
    quantised, plain = (attribute(model, TOKENIZER, PROMPT, TARGET, **options).sequences[0] for model in models)
    for key, values in quantised.parts().items():
        found, expected = (torch.tensor(of[:N_PROMPT, 0]).flatten() for of in (values, plain.parts()[key]))
        assert cosine < torch.cosine_similarity(found, expected, dim=0) < 1 - 1e-6
    assert all(weight.grad is None for weight in models[0].parameters())
