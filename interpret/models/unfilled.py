"""Build a model without filling weights that have no memory yet.

A model is built on the device "meta" and then given the weights of its files. Layers still ask torch to fill their
weights with random numbers. For a tensor without memory this does nothing, but torch imports its compiler for it, which
takes 0.7 s.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_RANDOM = (Tensor.normal_, Tensor.uniform_)


class Unfilled(TorchFunctionMode):
    """Inside the ``with`` block, and in its thread only, tensors on the device "meta" are not filled at random."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the tensor that would be filled, or call the function."""
        kwargs = kwargs or {}
        if function in _RANDOM or getattr(function, "__module__", None) == "torch.nn.init":
            tensor = kwargs.get("tensor", args[0] if args else None)
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return function(*args, **kwargs)
