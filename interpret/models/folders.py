"""Recognise folders and files that look like a model but do not hold one: adapters and Git LFS pointers."""

import json
from pathlib import Path

from interpret.errors import ModelError

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_SIZE = 1024
"""Git LFS pointers are smaller than this, in bytes."""


def check_holds_model(place: Path) -> None:
    """Check that a folder, or a single file, is not an adapter without its model, nor contains Git LFS pointers.

    Raises:
        ModelError: if it is; the message says how to get the model.
    """
    if place.is_dir() and (place / "adapter_config.json").is_file() and not (place / "config.json").is_file():
        raise ModelError(
            f"{str(place)!r} is a PEFT adapter{_of(place)}, not a model: open the model, apply the adapter with "
            "peft.PeftModel.from_pretrained, and save model.merge_and_unload() to a folder; or pass "
            "model.get_base_model() to the Python functions"
        )
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if _is_pointer(file):
            raise ModelError(
                f"{str(file)!r} is a Git LFS pointer, which stands for a file that was not downloaded: run "
                "'git lfs pull' in its folder"
            )


def _is_pointer(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size < _POINTER_SIZE and file.read_bytes().startswith(_POINTER)
    except OSError:  # whoever opens the file explains this
        return False


def _of(adapter: Path) -> str:
    """Return the words that name an adapter's model, if its configuration names one."""
    try:
        name = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f" of {name!r}" if isinstance(name, str) and len(name) < 200 else ""
