"""Provenance of results: versions of the libraries, and hashes of the inputs."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from interpret.errors import RunError
from interpret.reading import open_file

LIBRARIES = ("llm-interpret", "torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "numpy")


def versions() -> dict[str, str]:
    """Return name -> version of everything results may depend on: Python, the platform, and the installed libraries."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def file_sha256(path: Path | str) -> str:
    """Return the sha256 of a file's bytes, in hex.

    Raises:
        RunError: if the file cannot be read.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def objects_sha256(objects: Iterable[Any]) -> str:
    """Return one sha256 of dataclass instances or JSON values, for inputs that were not read from a file."""
    found = hashlib.sha256()
    for one in objects:
        value = [type(one).__name__, asdict(one)] if is_dataclass(one) and not isinstance(one, type) else one
        found.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return found.hexdigest()
