"""The same model twice: on the CPU, and elsewhere in whole or in part; and whether both give the same."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of


def spread(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Put a model on a device, but two of its layers; what enters a layer follows it, as accelerate does it."""
    cpu = torch.device("cpu")
    model.to(device)
    for place, layer in zip((device, cpu, cpu, device), anatomy_of(model).layers, strict=True):
        layer.to(place)
        add_hook_to_module(layer, AlignDevicesHook(execution_device=place, skip_keys="past_key_value"))
    return model


def leaves(value: Any) -> Iterator[Any]:
    """Yield the numbers, texts and arrays of a result, in order."""
    if isinstance(value, torch.Tensor):
        yield value.detach().cpu().numpy()
    elif isinstance(value, pd.DataFrame):
        for name in value.columns:
            yield value[name].to_numpy()
    elif is_dataclass(value):
        yield from leaves([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Mapping):
        yield from leaves(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def results(call: Callable[[PreTrainedModel], Any], model: PreTrainedModel) -> list[Any]:
    """Return the numbers, texts and arrays that a call gives, always from the same random numbers."""
    torch.manual_seed(0)
    return list(leaves(call(model)))


def assert_alike(name: str, found: list[Any], expected: list[Any]) -> None:
    """Check that a call gave the same twice, numbers up to rounding."""
    assert len(found) == len(expected) > 0
    # Training steps divide gradients by their own size, the smallest too: rounding grows.
    near = {"rtol": 1e-3 if "control" in name else 1e-4, "atol": 1e-5}
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, float) or (isinstance(theirs, np.ndarray) and theirs.dtype.kind == "f"):
            np.testing.assert_allclose(ours, theirs, **near)
        else:
            np.testing.assert_array_equal(ours, theirs)
