"""Faster linear layers on CPUs, with the same results up to rounding.

torch computes float32 products with MKL, which does not use the widest vector instructions of AMD CPUs. oneDNN, which
torch also includes, uses them: it is 2.2 times as fast on an EPYC with AVX-512, and about as fast on Intel. The
operator used here is the one that torch's compiler calls. The layer itself is called if that operator is missing or
gives wrong results, or if the layer is not a plain linear layer (quantised, hooked, adapted, half precision).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Module = Callable[[Tensor], Tensor]


def quick(module: Module) -> Module:
    """Return a function that computes the same as a module, faster if it is a linear layer on a CPU.

    The module's parameters are read at each call, so later changes to them take effect.
    """
    if type(module) is nn.Linear or type(module) is Conv1D:
        return lambda x: _apply(module, x)
    if isinstance(module, nn.Linear):
        # Quantised layers expect a matrix [rows, features], in which they look for outliers.
        size = module.in_features * module.out_features
        return lambda x: rounded_alike(module, x.reshape(-1, x.shape[-1]), size).unflatten(0, x.shape[:-1])
    return module


_SMALL = 16**3
"""torch gives float16 matrices on CPUs to oneDNN only if their product takes more multiplications than this."""
_FEW = 3
"""In float16, oneDNN adds up the products of fewer rows in another order."""


def rounded_alike(product: Module, rows: Tensor, size: int) -> Tensor:
    """Return the product of rows, [..., N, in] -> [..., N, out], where few rows are rounded as each of many.

    In float16, CPUs add up small products, and those of one or two rows, in another order than others. So rows are
    added until the product is large enough; what they give is left out.

    Args:
        product: computes the product.
        rows: the rows.
        size: number of entries of the other factor, of all batches together.
    """
    few = rows.shape[-2]
    missing = _missing_rows(rows, few, size)
    if not missing:
        return product(rows)
    more = rows.new_zeros(*rows.shape[:-2], missing, rows.shape[-1])
    return product(torch.cat([rows, more], dim=-2))[..., :few, :].contiguous()


def _missing_rows(like: Tensor, n_rows: int, size: int) -> int:
    """Return how many rows have to be added to ``n_rows``, for a dtype, a device and a size of the other factor."""
    if like.dtype != torch.float16 or like.device.type != "cpu":
        return 0
    return max(0, max(_FEW, _SMALL // max(1, size) + 1) - n_rows)


def _apply(module: Any, x: Tensor) -> Tensor:
    weight, operator = module.weight, _operator()
    if operator is None or not _is_plain(module, weight, x):
        if not _missing_rows(x, x.shape[:-1].numel(), weight.numel()):
            return module(x.contiguous())  # Conv1D calls view
        return rounded_alike(module, x.reshape(-1, x.shape[-1]), weight.numel()).unflatten(0, x.shape[:-1])
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
