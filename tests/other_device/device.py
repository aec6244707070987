"""A device of its own on any machine: its tensors lie in the memory of the CPU and are kept apart as on a GPU.

Tensors of two devices do not meet, indices and numbers aside; none becomes a numpy array without ``cpu()``; generators
draw for their own device; and backward runs in a thread of the device's own. What is computed is what the CPU computes.

It stands on torch's device for backends written in Python, so a process that imports this module has it for good, and
must do so before its first backward pass: autograd starts its threads there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CPU = torch.device("cpu")
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_COPIES = (aten.copy_.default, aten._to_copy.default)
# Operations that do not take a number of another device for a tensor.
_STRICT = (aten.cat.default, aten.stack.default, aten.embedding.default, aten.index_select.default, aten.gather.default)


without_float64 = False
"""Whether the device is as Apple's, which have no such numbers."""


class _Backend(backend_registration._DummyBackendModule):
    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


backend_registration._setup_privateuseone_for_python_backend("elsewhere", backend_module=_Backend())
ELSEWHERE = torch.device("elsewhere", 0)


class _Lying(Tensor):
    """A tensor that lies elsewhere; ``inner`` is what it holds."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "_Lying":
        lying = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=ELSEWHERE
        )
        lying.inner = inner
        return lying

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    def __repr__(self) -> str:
        return f"{self.inner} elsewhere"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert elsewhere:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: Any) -> Tensor:
        copied = _Lying(self.inner.detach().clone())
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied


class elsewhere(TorchDispatchMode):  # noqa: N801
    """Lets tensors be made there and moved there, inside a ``with`` block."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    asked = kwargs.get("device")
    device = torch.device(asked) if asked is not None else _meeting_place(operation, args, kwargs)
    if device.type != ELSEWHERE.type and not any(isinstance(part, _Lying) for part in _tensors((args, kwargs))):
        return operation(*args, **kwargs)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != device.type:
        raise RuntimeError(f"Expected a {device.type!r} device type for generator but found {generator.device.type!r}")
    inner_args, inner_kwargs = tree_map_only(_Lying, lambda lying: lying.inner, (args, kwargs))
    if asked is not None:
        inner_kwargs["device"] = CPU
    result = operation(*inner_args, **inner_kwargs)
    if without_float64 and device != CPU and any(part.dtype == torch.float64 for part in _tensors(result)):
        raise TypeError("Cannot convert a tensor to float64 dtype as this device does not support it")
    if _writes_in_place(operation):
        return args[0]
    return result if device == CPU else tree_map_only(Tensor, _Lying, result)


def _meeting_place(operation: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
    """Return the device an operation runs on; refuse what CUDA refuses."""
    if operation in _COPIES:
        return args[0].device
    if operation in _INDEXED:
        table, indices, *rest = args
        if any(isinstance(index, Tensor) and index.device not in (CPU, table.device) for index in tree_leaves(indices)):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        args = (table, *rest)
    tensors = _tensors((args, kwargs))
    firm = {tensor.device for tensor in tensors if tensor.dim() or operation in _STRICT}
    places = firm or {tensor.device for tensor in tensors if tensor.device != CPU} or {CPU}
    if len(places) > 1 or any(tensor.device not in (CPU, *places) for tensor in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two: {operation}")
    return places.pop()


def _tensors(parts: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, Tensor)]


def _writes_in_place(operation: Any) -> bool:
    schema = operation._schema
    first = schema.arguments[0].alias_info if schema.arguments else None
    return first is not None and first.is_write and schema.name.endswith("_")


# torch.tensor(..., device=...) and some conversions come past __torch_dispatch__: they ask the device itself.
_kernels = torch.library.Library("aten", "IMPL")


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype, **_: Any) -> Tensor:
    with _disable_current_modes():
        return _Lying(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, *, dtype: torch.dtype, **_: Any) -> Tensor:
    with _disable_current_modes():
        return _Lying(torch.empty(size, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    with _disable_current_modes():
        plain = [tensor.inner if isinstance(tensor, _Lying) else tensor for tensor in (target, source)]
        plain[0].copy_(plain[1])
    return target


_kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
_kernels.impl("empty.memory_format", _empty, "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
# Module.to makes new parameters instead of giving the old ones other data: these are of another class.
torch.__future__.set_overwrite_module_params_on_conversion(True)
