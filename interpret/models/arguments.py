"""The arguments of ``load`` about format and place, checked before anything is opened."""

from collections.abc import Mapping
from typing import Literal

import torch

from interpret.errors import ModelError, unknown
from interpret.models.extras import require

DeviceMap = str | Mapping[str, int | str | torch.device]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Supported dtypes. In float64, transformers 4.34.0 cannot create the attention mask of a Llama model."""
_MAP_WORDS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate knows by name."""


def bits_of(load_in_8bit: bool, load_in_4bit: bool) -> Literal[4, 8] | None:
    """Return to how many bits the weights are rounded; None if they are not."""
    if load_in_8bit and load_in_4bit:
        raise ModelError("load_in_8bit and load_in_4bit exclude each other: choose one")
    if load_in_8bit:
        return 8
    return 4 if load_in_4bit else None


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | Literal["auto"]:
    """Return the dtype of a name, or ``auto``, the dtype of the files."""
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ModelError(unknown("dtype", str(dtype), DTYPES))


def place_of(device: str | torch.device | None, device_map: DeviceMap | None) -> torch.device | None:
    """Return the device of the whole model; None if a device map spreads it over several."""
    if device_map is None:
        if device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return _usable("device", device)
    require("accelerate", "device_map")
    if device is not None:
        raise ModelError("device and device_map exclude each other: give device for one, device_map for several")
    targets = [device_map] if isinstance(device_map, str) else device_map.values()
    for target in targets:
        if target != "disk" and target not in _MAP_WORDS:
            _usable("device_map", target)
    return None


def _usable(argument: str, device: int | str | torch.device) -> torch.device:
    """Check that this machine has a device; an integer is the index of a GPU."""
    try:
        wanted = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError as error:  # not a device at all
        raise ModelError(f"{argument} {device!r} is not a device: give 'cpu', 'cuda' or 'cuda:0'") from error
    gpus = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= gpus:
        raise ModelError(
            f"{argument} {str(device)!r} is not available: torch finds {gpus} CUDA GPUs. Leave it out, or give 'cpu'"
        )
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError(
            f"{argument} {str(device)!r} is not available: torch finds no Apple GPU. Leave it out, or give 'cpu'"
        )
    return wanted
