"""Counts where the CPU waits for the other device: there a GPU runs out of work while the CPU prepares more."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_GIVING_NUMBERS = {  # the CPU needs their result, or its size
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.allclose.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Waits(TorchDispatchMode):
    """Notes the operations, inside a ``with`` block, for which the CPU waits until the device has done all its work.

    As with CUDA, a copy to the device waits unless it is made with ``non_blocking``, a copy from it always does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(operation, args, kwargs):
            self.found.append(str(operation))
        return operation(*args, **kwargs)


def _waits(operation: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    devices = [leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if operation is aten._to_copy.default:
        return _copy_waits(args[0].device, kwargs.get("device") or args[0].device, kwargs.get("non_blocking", False))
    if operation is aten.copy_.default:
        return _copy_waits(args[1].device, args[0].device, bool(args[2:] and args[2]))
    if not any(device != "cpu" for device in devices):
        return False
    if operation in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) or index.device != args[0].device for index in indices)
    # A list that becomes a tensor on the device shows only as this operation; an empty one needs no copy.
    return operation in _GIVING_NUMBERS or (operation is aten.lift_fresh.default and args[0].numel() > 0)


def _copy_waits(source: torch.device, target: torch.device, non_blocking: bool) -> bool:
    return source.type != target.type and not (non_blocking and source.type == "cpu")
