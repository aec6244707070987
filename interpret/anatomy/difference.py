"""By how much two tensors differ: one computed by this package, and the same one computed by the model."""

import torch
from torch import Tensor


def apart(
    exact: bool, ours: Tensor, own: Tensor, *, tolerance: float = 1e-3, size: Tensor | None = None
) -> tuple[float, float] | None:
    """Return the entries of two tensors that differ most, ours first; None if the tensors agree.

    Args:
        exact: whether they have to agree exactly; two ways to compute the same in low precision differ by larger
            rounding errors.
        ours: a tensor computed here.
        own: the same tensor, computed by the model.
        tolerance: the allowed difference in full precision, relative to the spread of ``own`` or the size of ``size``.
        size: what ``ours`` adds to larger numbers, if the difference is to be compared with that.
    """
    if torch.equal(ours.to(own), own):
        return None
    tolerance, rounding = (tolerance, 1e-5) if exact else (0.05, 0.02)
    ours, own = (part.detach().cpu().double() for part in (ours, own))
    same = (ours == own) | (ours.isnan() & own.isnan())
    apart = (ours - own).abs().nan_to_num(nan=torch.inf).masked_fill(same, 0.0)
    sound = own.masked_fill(~own.isfinite(), 0.0)
    allowed = tolerance * _norm(sound - sound.mean(-1, keepdim=True))
    if size is not None:
        allowed = tolerance * _norm(size.cpu().double()) + rounding * _norm(own)
    if not apart.norm() > allowed:
        return None
    most = int(apart.argmax())
    return float(ours.flatten()[most]), float(own.flatten()[most])


def _norm(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0).norm()
