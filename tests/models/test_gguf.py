"""GGUF files: opened if transformers can read them, refused with the reason otherwise."""

from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch

from interpret.errors import ModelError
from interpret.models.opening import load, weights
from reference.tiny import tiny_model

READS_GGUF = find_spec("transformers.modeling_gguf_pytorch_utils") is not None
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permuted(weight, heads):
    """Return the rows of queries or keys in the order of llama.cpp: rows that are rotated together are neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(model):
    config = model.config
    for name, tensor in model.state_dict().items():
        weight, module = tensor.numpy(), name.removesuffix(".weight")
        if module in OTHERS:
            yield f"{OTHERS[module]}.weight", weight
        elif module.startswith("model.layers."):
            layer, part = module.removeprefix("model.layers.").split(".", 1)
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            if part in heads:
                weight = permuted(weight, heads[part])
            if part in NAMES:
                yield f"blk.{layer}.{NAMES[part]}.weight", weight


def written(model, path):
    """Write a Llama with a vocabulary of letters and two pairs of them."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<|end|>", "ab", "cd", *(chr(ord("!") + n) for n in range(config.vocab_size - 3))]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in tensors(model):
        writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path):
    return written(tiny_model("llama"), tmp_path / "tiny.gguf")


@pytest.mark.skipif(not READS_GGUF, reason="this release of transformers cannot read GGUF files")
def test_a_gguf_file_opens_with_its_own_weights(file):
    model, tokenizer = load(file, device="cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny_model("llama")(ids).logits, rtol=1e-4, atol=1e-5)
    assert tokenizer.pad_token_id is not None
    assert weights(model).startswith("sha256 ")


@pytest.mark.skipif(READS_GGUF, reason="this release of transformers reads GGUF files")
def test_a_gguf_file_is_refused_with_the_reason(file):
    with pytest.raises(ModelError, match=r"cannot read GGUF files; a current version can"):
        load(file, device="cpu")


def test_another_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file: give the folder that holds it"):
        load(tmp_path / "model.bin")
