"""Identify a function by its source, and a model by hashes, reproducibly across processes."""

import ast
import hashlib
import inspect
import json
import textwrap
import tokenize
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from transformers import PreTrainedModel

from interpret.storage.cache import weights_sha256


def source_of(function: Callable[..., Any]) -> str:
    """Return the source of a function with its decorators, or its bytecode if there is no source (interactive use)."""
    innermost = inspect.unwrap(function)
    try:
        text = textwrap.dedent(inspect.getsource(innermost))
        found = ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, tokenize.TokenError):
        return _bytecode(innermost.__code__)
    # Code compiled from a string may name a file that holds other source.
    named = isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == innermost.__name__
    return text if named else _bytecode(innermost.__code__)


def _bytecode(code: CodeType) -> str:
    """Return a code object as JSON, without file name and line numbers."""
    constants = [_constant(each) for each in code.co_consts]
    return json.dumps({"bytecode": code.co_code.hex(), "names": code.co_names, "constants": constants})


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _bytecode(value)
    # The order of a set differs between processes.
    return repr(sorted(value, key=repr)) if isinstance(value, frozenset) else repr(value)


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Identify a model by its name, class, weights and dtypes.

    The weights are identified by the hash of their files, or their commit on the Hugging Face Hub; those of a model
    created in memory by the hash of their values. Changes in memory to weights loaded from files are not detected.
    """
    name = str(model.config._name_or_path)
    commit = getattr(model.config, "_commit_hash", None)
    if name and Path(name).is_dir():
        weights = f"files {weights_sha256(name)}"
    else:
        weights = f"commit {commit}" if commit else f"values {_values_sha256(model)}"
    return {
        "name": name,
        "class": type(model).__name__,
        "weights": weights,
        "dtypes": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}),
    }


def _values_sha256(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
