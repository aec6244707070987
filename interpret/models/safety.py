"""Open models without running code from their files, and recognise folders that do not hold a model.

Three kinds of files can run code when they are opened: Python files that ``config.json`` or ``tokenizer_config.json``
names in ``auto_map``, weights stored with pickle (``.bin``, ``.pt``), and the pickled vocabulary of Transformer-XL. The
first is turned off by ``trust_remote_code=False``. For the second, ``torch.load`` has to read tensors only, which
before torch 2.6 could be circumvented (CVE-2025-32434); the safetensors format is always preferred. The third is
refused.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import PretrainedConfig

from interpret.anatomy.changes import Changes
from interpret.errors import ModelError, named, one_line
from interpret.reading import parse_json, read_bytes

READS_PICKLES = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 6)
"""Whether this torch reads pickled weights without running code in them."""
ADAPTER, CONFIG = "adapter_config.json", "config.json"
_INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_POINTER = 1000
"""Maximum size of a Git LFS pointer in bytes, and of the names of a message in characters."""
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def loading_safely() -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` with which a model's own code and unsafe weights are not read."""
    return {"trust_remote_code": False} | ({} if READS_PICKLES else {"use_safetensors": True})


@contextmanager
def tensors_only() -> Iterator[None]:
    """Make ``torch.load`` read tensors only, also where its caller does not ask for this (transformers 4.34.0).

    The setting is an environment variable of torch, so it applies to all threads inside the ``with`` block.
    """
    with Changes() as change, change:
        change.undo(partial(_set_environment, {name: os.environ.get(name) for name in (_FORCE, _FORCE_NOT)}))
        _set_environment({_FORCE: "1", _FORCE_NOT: None})
        yield


def _set_environment(values: Mapping[str, str | None]) -> None:
    """Set environment variables, and remove those with the value None."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds a model in files that cannot be read safely.

    Raises:
        ModelError: if it has no weights in the safetensors format, and torch is older than 2.6.
    """
    if not READS_PICKLES and not _has_safetensors(folder):
        raise ModelError(
            f"{named(folder)!r} has no weights in the safetensors format, and torch {torch.__version__} may run code "
            "that other weight files contain: update torch to 2.6 or newer, or save the weights as safetensors"
        )


def check_pointers(folder: Path) -> None:
    """Refuse a folder with Git LFS pointers in place of files.

    Raises:
        ModelError: if it has some.
    """
    if pointers := [path.name for path in sorted(folder.iterdir()) if is_pointer(path)]:
        shown = one_line(", ".join(pointers[:3])) + (f" and {len(pointers) - 3} more" if len(pointers) > 3 else "")
        raise ModelError(
            f"{named(folder)!r} holds Git LFS pointers in place of files ({shown}), a few lines of text each: the "
            "files themselves were not downloaded. Run 'git lfs pull' in this folder"
        )


def is_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer: a few lines of text in place of a large file."""
    if not path.is_file() or path.stat().st_size > _LONGEST_POINTER:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def check_tokenizer(source: str, settings: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Refuse the tokenizer of Transformer-XL, whose vocabulary is a pickle that transformers 4.34.0 executes.

    Args:
        source: name of the model, for the message.
        settings: contents of ``tokenizer_config.json``.
        config: the model's configuration, which may name the class as well.

    Raises:
        ModelError: if it is one.
    """
    classes = (settings.get("tokenizer_class"), getattr(config, "tokenizer_class", None))
    if config.model_type == "transfo-xl" or any("TransfoXL" in str(name) for name in classes):
        raise ModelError(f"{named(source)!r} has a tokenizer of Transformer-XL, which is a pickle: it is not opened")


def own_code(settings: Mapping[str, Any]) -> str | None:
    """Return the names of the Python modules that a configuration names in ``auto_map``; None if there are none."""
    found = settings.get("auto_map") if isinstance(settings, Mapping) else None
    if not found:
        return None
    names = found.values() if isinstance(found, dict) else [found]
    return one_line(", ".join(sorted({_module(name) for name in names})))


def refusal_of_code(source: str, modules: str) -> str:
    """Return the message for a model or tokenizer that consists of Python code."""
    return (
        f"{named(source)!r} needs Python code of its own ({modules}), which is not run. If you have read it and trust "
        "it, open model and tokenizer in Python with transformers (from_pretrained(..., trust_remote_code=True)), "
        "and pass them to the functions of this package"
    )


def refusal_of_pickle(error: BaseException | None) -> str | None:
    """Return why pickled weights were refused, from the causes of an error; None if this was not its cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UnpicklingError):
            reason = _reason(error)
            return (
                f"its weights are not only tensors{reason and f' ({reason})'}, and nothing else in them is read or "
                "run; ask for weights in the safetensors format"
            )
        error = error.__cause__ or error.__context__
    return None


def _reason(error: UnpicklingError) -> str:
    """Return what torch found, without its advice to read the file in the way that may run code."""
    found = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    advice = ("Weights only load failed", "Please file", "Check the documentation")
    return one_line(next((line for line in found.splitlines() if line.strip() and not line.startswith(advice)), ""))


def _has_safetensors(folder: Path) -> bool:
    """Return whether all weights that transformers would open are in the safetensors format."""
    if (folder / "model.safetensors").is_file():
        return True
    shards = read_object(folder / _INDEX).get("weight_map")
    return isinstance(shards, dict) and all(str(name).endswith(".safetensors") for name in shards.values())


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if it cannot be read."""
    try:
        found = parse_json(read_bytes(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _module(name: Any) -> str:
    """Return the file of a class such as ``modeling_mine.MyModel``, or of a list of such."""
    names = name if isinstance(name, list) else [name]
    return ", ".join(f"{str(one).rpartition('.')[0] or one}.py" for one in names if one)
