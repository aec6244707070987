"""A linear layer with 8-bit weights that does not round its inputs.

The layer of bitsandbytes rounds its inputs to 8 bits too, except for columns with a large value in any token of the
batch (LLM.int8()). So the output for a token depends on the other texts of its batch, and on the tokens after it. Here
it depends only on the token itself, and is nearer to the output in full precision.
"""

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor


class EightBitLinear(Linear8bitLt):
    """A linear layer of bitsandbytes, with the same weights and scales, that does not round its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``weight @ x + bias`` in the dtype of ``x``, [..., in] -> [..., out]."""
        if self.weight.CB is not None:
            self.init_8bit_state()
        output: Tensor = _Product.apply(x, self)
        return output if self.bias is None else output + self.bias.to(x.dtype)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the weights, [out, in]: 8-bit integers, each row with a scale of 1/127 of its largest weight."""
        scale: Tensor = self.state.SCB[:, None] / 127
        return self.state.CB.to(dtype, copy=True).mul_(scale)


class _Product(torch.autograd.Function):
    """The product of inputs and dequantised weights, which are not kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: EightBitLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.dequantised(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantised(grad.dtype), None
