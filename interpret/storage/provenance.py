"""Where numbers come from: the versions they were computed with, and hashes of what they were computed from."""

import hashlib
import importlib.metadata
import platform
from contextlib import suppress
from pathlib import Path

from interpret.errors import RunError

LIBRARIES = ("llm-interpret", "torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "numpy")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")


def versions() -> dict[str, str]:
    """Return the versions that results depend on: Python, platform, and each installed library, by name."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def file_sha256(path: Path | str) -> str:
    """Return the sha256 of a file's bytes, in hex.

    Raises:
        RunError: if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def weights_sha256(folder: Path | str) -> str:
    """Return one sha256 for the weights in a model folder: that of its weight files' names and sha256s, by name.

    Raises:
        RunError: if there are none, or one cannot be read.
    """
    for pattern in WEIGHTS:
        if files := sorted(Path(folder).glob(pattern)):
            lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
            return hashlib.sha256(lines.encode()).hexdigest()
    raise RunError(f"{folder}: no weights there; looked for {', '.join(WEIGHTS)}")
