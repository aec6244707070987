"""Linear layers as fast as the CPU allows, with the same numbers to rounding.

torch sends float32 products to MKL, which leaves the wider half of the instructions of AMD's CPUs unused; the oneDNN
that torch also carries takes what the CPU has. On an EPYC with AVX-512 it is 2.2 times as fast, on Intel about equal.
torch's own compiler calls it by the operator used here; where that is missing, or does not do what it should, or a
layer is not plainly a linear layer (quantised, hooked, adapted, half precision), the layer is called as it is.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Module = Callable[[Tensor], Tensor]


def quick(module: Module) -> Module:
    """Return a function that computes what a module computes, fast where it is a linear layer on a CPU.

    The module's parameters are looked up at each call, so changes to them count.
    """
    if type(module) is nn.Linear or type(module) is Conv1D:
        return lambda x: _apply(module, x)
    if isinstance(module, nn.Linear):
        # Quantised layers look for outliers in rows of [rows, features].
        return lambda x: module(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])
    return module


def _apply(module: Any, x: Tensor) -> Tensor:
    weight, operator = module.weight, _operator()
    if operator is None or not _is_plain(module, weight, x):
        result: Tensor = module(x.contiguous())  # Conv1D takes a view
        return result
    # Conv1D keeps its weight the other way round.
    return operator(x, weight if type(module) is nn.Linear else weight.t(), module.bias)


def _is_plain(module: nn.Module, weight: Tensor, x: Tensor) -> bool:
    """Whether calling the module would do no more than a float32 product on the CPU, without a graph."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        # Adapters and offloading put hooks on a module, or a forward of their own.
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in vars(module)
    )


@cache
def _operator() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """Return oneDNN's linear layer, or None where this torch has none that works."""
    try:
        found = torch.ops.mkldnn._linear_pointwise

        def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = found(x, weight, bias, "none", [], "")
            return result

        # Of a dtype of their own: what is found here is kept, whatever the default is just now.
        x, weight, bias = (
            torch.arange(size, dtype=torch.float32).view(shape)
            for size, shape in ((12, (2, 1, 6)), (18, (3, 6)), (3, (3,)))
        )
        works = torch.equal(operator(x, weight, bias), nn.functional.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator if works else None
