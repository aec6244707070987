"""Numbers with more digits than a model's."""

from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}
"""Types of devices that have no such numbers."""


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, differentiable: where it is, or on the CPU where its device has no such numbers.

    >>> import torch
    >>> in_float64(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float64
    """
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
