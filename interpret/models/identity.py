"""What runs record about a model: its name, an identifier of its weights, its dtype, and where it ran."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from interpret.anatomy import unwrapping
from interpret.models.adapters import adapters_sha256
from interpret.models.demo import SMOLLM2
from interpret.models.opening import opened_as
from interpret.storage import provenance
from interpret.storage.cache import cache_folder, remembered_sha256, weights_sha256


@unwrapping
def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Return what a run records about a model and compares when it is resumed.

    Args:
        model: as ``load`` opened it, or opened by transformers.

    Returns:
        ``model``, the name with which it was opened, or ``demo``; ``weights``, see the function ``weights``; ``dtype``;
        and whether its layers are quantised, ``load_in_8bit`` and ``load_in_4bit``.

    Raises:
        RunError: if its weights cannot be read.
    """
    opening = opened_as(model)
    name = opening.name if opening else str(model.config._name_or_path)
    layers = {type(module).__name__ for module in model.modules()}
    eight_bit = {"Linear8bitLt", "EightBitLinear"}
    return {
        "model": "demo" if name == str(cache_folder() / SMOLLM2.folder) else name,
        "weights": weights(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "load_in_8bit": bool(layers & eight_bit),
        "load_in_4bit": "Linear4bit" in layers,
    }


@unwrapping
def model_circumstances(model: PreTrainedModel) -> dict[str, Any]:
    """Return what a run records about a model without comparing it: ``versions`` of libraries, and its ``device``."""
    return {"versions": provenance.versions(), "device": str(model.device)}


def weights(model: PreTrainedModel) -> str:
    """Return an identifier of a model's weights: a hash of its files or of its tensors, or its commit on the hub.

    The files are those from which it was opened; later changes of the weights in memory do not show. Tensors are hashed
    if the model was not opened from a file, a folder or the hub. For adapters of PEFT in the model, the hash of their
    tensors is added.

    Raises:
        RunError: if a file cannot be read, or its folder has no weight files.
    """
    adapters = adapters_sha256(model)
    return _base_weights(model) + (f", adapters sha256 {adapters}" if adapters else "")


def _base_weights(model: PreTrainedModel) -> str:
    name = str(model.config._name_or_path)
    place = Path(name)
    if place.is_file():
        return f"sha256 {remembered_sha256(place)}"
    if name and place.is_dir():
        return f"sha256 {weights_sha256(place)}"
    if name:
        return f"commit {model.config._commit_hash}"
    return f"tensors {_tensors_sha256(model)}"


def _tensors_sha256(model: PreTrainedModel) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
