"""Faster linear layers on CPUs, with the same results up to rounding.

torch computes float32 products with MKL, which does not use the widest vector instructions of AMD CPUs. oneDNN, which
torch also includes, uses them: it is 2.2 times as fast on an EPYC with AVX-512, and about as fast on Intel. The
operator used here is the one that torch's compiler calls. The layer itself is called if that operator is missing or
gives wrong results, or if the layer is not a plain linear layer (quantised, hooked, adapted, half precision).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interpret.anatomy.passes import grad_mode

Module = Callable[[Tensor], Tensor]


def quick(module: Module) -> Module:
    """Return a function that computes the same as a module, faster if it is a linear layer on a CPU.

    The module's parameters are read at each call, so later changes to them take effect.
    """
    if type(module) is nn.Linear or type(module) is Conv1D:
        return LinearLayer(module)
    if isinstance(module, nn.Linear):
        # Quantised layers expect a matrix [rows, features], in which they look for outliers.
        return lambda x: rounded_alike(module, x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])
    return module


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of torch, or a ``Conv1D`` of transformers."""

    module: Any

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output, [..., in] -> [..., out]."""
        return _apply(self.module, x)

    def pull(self, at_output: Tensor) -> Tensor:
        """Return the derivative at the input for one at the output, [..., out] -> [..., in]; there is no graph."""
        weight = self.module.weight if type(self.module) is Conv1D else self.module.weight.t()  # [in, out]
        with grad_mode(False):
            operator = _operator()
            if operator is None or not _is_plain(self.module, weight, at_output):
                return nn.functional.linear(at_output, weight)
            return operator(at_output, weight, None)


def rounded_alike(product: Module, rows: Tensor) -> Tensor:
    """Return the product of rows, [..., N, in] -> [..., N, out], where a single row is rounded as one of several.

    In float16, CPUs add up the products of a single row in another way than those of several.
    """
    if rows.shape[-2] == 1 and rows.dtype == torch.float16 and rows.device.type == "cpu":
        return product(rows.expand(*rows.shape[:-2], 2, -1).contiguous())[..., :1, :]
    return product(rows)


def _apply(module: Any, x: Tensor) -> Tensor:
    weight, operator = module.weight, _operator()
    if operator is None or not _is_plain(module, weight, x):
        x = x.contiguous()  # Conv1D calls view
        result: Tensor = rounded_alike(module, x) if x.shape[:-1].numel() == 1 else module(x)
        return result
    # The weight of Conv1D is transposed.
    return operator(x, weight if type(module) is nn.Linear else weight.t(), module.bias)


def _is_plain(module: nn.Module, weight: Tensor, x: Tensor) -> bool:
    """Return whether the module only computes a float32 product on the CPU, without a graph."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        # Adapters and offloading put hooks on a module, or replace its forward.
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in vars(module)
    )


@cache
def _operator() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """Return oneDNN's linear operator, or None if this torch has none that works."""
    try:
        found = torch.ops.mkldnn._linear_pointwise

        def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = found(x, weight, bias, "none", [], "")
            return result

        # With an explicit dtype: the cached result must not depend on the current default dtype.
        x, weight, bias = (
            torch.arange(size, dtype=torch.float32).view(shape)
            for size, shape in ((12, (2, 1, 6)), (18, (3, 6)), (3, (3,)))
        )
        works = torch.equal(operator(x, weight, bias), nn.functional.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator if works else None
