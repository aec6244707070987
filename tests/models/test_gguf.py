"""GGUF files: opened if transformers can read them, later from the cache; refused with the reason otherwise."""

import os
import resource
import subprocess
import sys
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interpret.errors import ModelError
from interpret.models import files, identity, opening
from interpret.models import gguf as conversions
from interpret.models.identity import weights
from interpret.models.opening import load
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
        weight, (module, kind) = tensor.numpy(), name.rsplit(".", 1)
        if module in OTHERS:
            yield f"{OTHERS[module]}.weight", weight
        elif module.startswith("model.layers."):
            layer, part = module.removeprefix("model.layers.").split(".", 1)
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            if part in heads and config.model_type == "llama":
                weight = permuted(weight, heads[part])
            if part in NAMES:
                yield f"blk.{layer}.{NAMES[part]}.{kind}", weight


def written(model, path):
    """Write a Llama or Qwen 2 with a vocabulary of letters and two pairs of them."""
    config, writer = model.config, gguf.GGUFWriter(path, model.config.model_type)
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


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of conversions in an empty cache."""
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def conversions_made(monkeypatch):
    """The files that were converted, in order."""
    made, plain = [], opening.convert

    def counted(file, folder, **more):
        made.append(file)
        plain(file, folder, **more)

    monkeypatch.setattr(opening, "convert", counted)
    return made


reads_gguf = pytest.mark.skipif(not READS_GGUF, reason="this release of transformers cannot read GGUF files")


@reads_gguf
def test_only_a_conversion_needs_accelerate(file, tmp_path, monkeypatch):
    converted, _ = load(file, device="cpu")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    model, _ = load(file, device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, converted.state_dict()[name]), name
    with pytest.raises(ModelError, match=r'^converting a GGUF file needs accelerate: pip install "llm-interpret\['):
        load(written(tiny_model("llama", seed=1), tmp_path / "other.gguf"), device="cpu")


@reads_gguf
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


# ------------------------------------------------------------------------------------------- kept conversions


def folder_of(cache):
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def assert_fresh(model, tokenizer, file, dtype=torch.float32):
    """Compare with what transformers makes of the file itself."""
    of_file = {"gguf_file": file.name, "dtype": dtype}
    fresh = AutoModelForCausalLM.from_pretrained(file.parent, **of_file)
    assert list(model.state_dict()) == list(fresh.state_dict())
    for name, tensor in fresh.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(model.state_dict()[name], tensor), name
    # What only says where a model comes from.
    left_out = {"_name_or_path", "transformers_version", "quantization_config", "architectures"}
    ours, theirs = ({k: v for k, v in one.config.to_dict().items() if k not in left_out} for one in (model, fresh))
    assert ours == theirs
    assert model.generation_config.eos_token_id == fresh.generation_config.eos_token_id
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in ("abcd", "a cd ab", "<|end|>b", "e\u0301"):
        assert tokenizer(text).input_ids == theirs(text).input_ids


@reads_gguf
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_kept_conversion_is_a_fresh_one_to_the_bit(dtype, file, cache, conversions_made):
    first, said = load(file, device="cpu", dtype=dtype), []
    second = load(file, device="cpu", dtype=dtype, say=said.append)
    for model, tokenizer in (first, second):
        assert_fresh(model, tokenizer, file, torch.bfloat16 if dtype else torch.float32)
        assert weights(model) == weights(first[0])
        assert identity.model_identity(model)["model"] == str(file)
    assert conversions_made == [file]
    assert said == [f"opening {file}"]


@reads_gguf
def test_a_tokenizer_whose_class_would_change_it_is_kept_as_it_is(cache, tmp_path, conversions_made):
    file = written(tiny_model("qwen2"), tmp_path / "qwen.gguf")
    for _ in range(2):
        assert_fresh(*load(file, device="cpu"), file)
    assert conversions_made == [file]


@reads_gguf
def test_what_is_kept_is_said_once_with_its_place_and_size(file, cache, monkeypatch):
    monkeypatch.setattr(conversions, "_size", lambda folder: 6_170_000_000)
    said = []
    load(file, device="cpu", say=said.append)
    load(file, device="cpu", say=said.append)
    folder = folder_of(cache)
    kept = [line for line in said if line.startswith("kept")]
    assert kept == [f"kept the converted weights in {folder} (6.2 GB), to open them from there"]


@reads_gguf
def test_another_file_of_the_same_name_is_another_model(file, conversions_made):
    load(file, device="cpu")
    changed = tiny_model("llama")
    with torch.no_grad():
        changed.lm_head.weight.add_(1)
    file.unlink()
    written(changed, file)
    model, tokenizer = load(file, device="cpu")
    assert_fresh(model, tokenizer, file)
    assert conversions_made == [file, file]


@reads_gguf
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes((folder / "model.safetensors").stat().st_size)),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
    ],
    ids=["truncated", "zeros", "missing", "manifest"],
)
def test_a_damaged_conversion_is_noticed_and_made_again(damage, file, cache, conversions_made):
    load(file, device="cpu")
    damage(folder_of(cache))
    said = []
    model, tokenizer = load(file, device="cpu", say=said.append)
    assert_fresh(model, tokenizer, file)
    assert said[1].startswith(f"the conversion in {folder_of(cache)} has to be made again")
    assert conversions_made == [file, file]


@reads_gguf
def test_on_a_full_disk_the_file_opens_anyway(file, cache, monkeypatch):
    free = conversions.shutil.disk_usage(file.parent)._replace(free=1000)
    monkeypatch.setattr(conversions.shutil, "disk_usage", lambda folder: free)
    said = []
    model, tokenizer = load(file, device="cpu", say=said.append)
    assert_fresh(model, tokenizer, file)
    assert identity.model_identity(model)["model"] == str(file)
    (line,) = (line for line in said if "is not kept" in line)
    assert "No space left on device (0.1 GB needed)" in line
    assert not [path for path in cache.iterdir() if path.is_dir()]


@reads_gguf
def test_a_disk_that_fills_up_meanwhile_is_no_failure(file, cache):
    """The limit on the size of files makes writing the weights fail in the middle, as a full disk does."""
    script = (
        "import sys\n"
        "from interpret.models.identity import weights\nfrom interpret.models.opening import load\n"
        "model, _ = load(sys.argv[1], device='cpu', say=print)\n"
        "print(weights(model))\n"
    )
    limit = 8192
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(file)], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "is not kept" in line)
    assert "File too large" in line
    assert done.stdout.splitlines()[-1].startswith("sha256 ")
    assert not [path for path in cache.iterdir() if path.is_dir()]


@reads_gguf
def test_of_two_processes_at_once_one_converts_and_both_open_the_file(file, cache, tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from interpret.models import identity, opening\n"
        "waits, plain = Path(sys.argv[2]), opening.convert\n"
        "def say(line):\n"
        "    print(line)\n"
        "    if line.startswith('another'):\n"
        "        waits.touch()\n"
        "def convert(*files, **more):\n"
        "    while not waits.exists():\n"
        "        time.sleep(0.01)\n"
        "    plain(*files, **more)\n"
        "opening.convert = convert\n"
        "model, _ = opening.load(sys.argv[1], device='cpu', say=say)\n"
        "print(identity.model_identity(model)['weights'])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(file), str(tmp_path / "waits")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=600)[0].splitlines() for process in processes]
    assert {lines[-1] for lines in printed} == {weights(load(file, device="cpu")[0])}
    words = [line.split()[0] for lines in printed for line in lines]
    assert (words.count("converting"), words.count("another")) == (1, 1)


@reads_gguf
def test_a_tokenizer_that_changes_when_it_is_saved_is_not_kept(file, cache, monkeypatch):
    monkeypatch.setattr(files, "_content", lambda tokenizer: object())
    said = []
    model, tokenizer = load(file, device="cpu", say=said.append)
    assert_fresh(model, tokenizer, file)
    assert "is not kept" in said[2]
    assert "its tokenizer is another one after it was saved" in said[2]


@reads_gguf
def test_a_damaged_file_is_one_error_and_leaves_nothing(file, cache):
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot open the model"):
        load(file, device="cpu")
    assert not [path for path in cache.iterdir() if path.is_dir()]
