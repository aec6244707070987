"""Faster linear layers on CPUs, with the same results up to rounding.

torch computes float32 products with MKL, which does not use the widest vector instructions of AMD CPUs. oneDNN, which
torch also includes, uses them: it is 2.2 times as fast on an EPYC with AVX-512, and about as fast on Intel. The
operators used here are those that torch's compiler calls. The layer itself is called if they are missing or give wrong
results, if the layer is not a plain linear layer (quantised, hooked, adapted, half precision), or for a single row,
which MKL multiplies 1.1 to 2.9 times as fast (matrices of the demo model's layers, Intel Xeon with AVX-512).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from interpret.anatomy.passes import grad_mode

Module = Callable[[Tensor], Tensor]
_SILU = (nn.SiLU, type(ACT2FN["silu"]))


def quick(module: Module) -> Module:
    """Return a function that computes the same as a module, faster if it is a linear layer on a CPU.

    The module's parameters are read at each call, so later changes to them take effect.
    """
    if type(module) is nn.Linear or type(module) is Conv1D:
        return LinearLayer(module)
    if isinstance(module, nn.Linear):
        # Quantised layers expect a matrix [rows, features], in which they look for outliers.
        size = module.in_features * module.out_features
        return lambda x: rounded_alike(module, x.reshape(-1, x.shape[-1]), size).unflatten(0, x.shape[:-1])
    return module


_SMALL = 16**3
"""torch gives float16 matrices on CPUs to oneDNN only if their product takes more multiplications than this."""
_FEW = 3
"""In float16, oneDNN adds up the products of fewer rows in another order."""


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
            if operator is None or not _is_plain(self.module, at_output):
                return nn.functional.linear(at_output, weight)
            return operator(at_output, weight, None)


def gated(activation: Module, gate: Module, up: Module, x: Tensor) -> Tensor:
    """Return ``activation(gate(x)) * up(x)``, [..., in] -> [..., out].

    For SiLU and linear layers, oneDNN applies the activation and the factor while it computes the products, so the
    neurons are written twice instead of four times.
    """
    operator = _gated_operator() if type(activation) in _SILU and not _changed(activation) else None
    if operator is None or x.shape[:-1].numel() == 1 or not (_is_linear(gate, x) and _is_linear(up, x)):
        return activation(gate(x)) * up(x)
    return operator(x, gate.module, up.module)


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
    operator, n_rows = _operator(), x.shape[:-1].numel()
    if operator is None or n_rows == 1 or not _is_plain(module, x):
        size = module.weight.numel()
        if not _missing_rows(x, n_rows, size):
            return module(x.contiguous())  # Conv1D calls view
        return rounded_alike(module, x.reshape(-1, x.shape[-1]), size).unflatten(0, x.shape[:-1])
    return operator(x, _matrix(module), module.bias)


def _matrix(module: Any) -> Tensor:
    """Return the weight of a linear layer, [out, in]; that of Conv1D is transposed."""
    weight: Tensor = module.weight
    return weight if type(module) is nn.Linear else weight.t()


def _is_linear(layer: Module, x: Tensor) -> TypeGuard[LinearLayer]:
    """Return whether oneDNN computes the product of a layer and x."""
    return isinstance(layer, LinearLayer) and _is_plain(layer.module, x)


def _is_plain(module: Any, x: Tensor) -> bool:
    """Return whether the module only computes a float32 product on the CPU, without a graph."""
    weight: Tensor = module.weight
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not _changed(module)
    )


def _changed(module: Any) -> bool:
    """Return whether hooks or a replaced ``forward``, as of adapters and offloading, change what a module computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@cache
def _operator() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """Return oneDNN's linear operator, or None if this torch has none that works."""
    try:
        found = torch.ops.mkldnn._linear_pointwise

        def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = found(x, weight, bias, "none", [], "")
            return result

        x, weight, bias = _numbers(2, 1, 6), _numbers(3, 6), _numbers(3)
        works = torch.equal(operator(x, weight, bias), nn.functional.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator if works else None


@cache
def _gated_operator() -> Callable[[Tensor, Any, Any], Tensor] | None:
    """Return the product of ``gated`` for SiLU by oneDNN, or None if this torch has none that works."""
    try:
        found = torch.ops.mkldnn._linear_pointwise

        def operator(x: Tensor, gate: Any, up: Any) -> Tensor:
            factor = found(x, _matrix(gate), gate.bias, "swish", [], "")
            result: Tensor = found.binary(x, factor, _matrix(up), up.bias, "mul")
            return result

        x, gate, up = _numbers(2, 1, 6), nn.Linear(6, 3, dtype=torch.float32), nn.Linear(6, 3, dtype=torch.float32)
        with torch.no_grad():
            for number, parameter in enumerate((*gate.parameters(), *up.parameters())):
                parameter.copy_(_numbers(*parameter.shape) / (10 + number))
            expected = nn.functional.silu(gate(x)) * up(x)
            works = torch.allclose(operator(x, gate, up), expected, rtol=1e-5, atol=1e-6)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator if works else None


def _numbers(*shape: int) -> Tensor:
    """Return the numbers 0, 1, 2, ...; with an explicit dtype, so that no result depends on the default dtype."""
    return torch.arange(prod(shape), dtype=torch.float32).view(shape)
