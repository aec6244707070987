"""By how much two tensors differ: one computed by this package, and the same one computed by the model."""

import numpy as np
import torch
from torch import Tensor, nn

_FULL = (torch.float32, torch.float64)


def in_full_precision(module: nn.Module) -> bool:
    """Return whether all parameters of a module are in float32 or float64."""
    return all(parameter.dtype in _FULL for parameter in module.parameters())


def apart(
    exact: bool, ours: Tensor, own: Tensor, *, tolerance: float = 1e-3, size: Tensor | None = None
) -> tuple[float, float] | None:
    """Return the entries of two tensors that differ most, ours first; None if the tensors agree.

    Args:
        exact: whether they have to agree exactly, see ``in_full_precision``; two ways to compute the same in low
            precision differ by larger rounding errors.
        ours: a tensor computed here.
        own: the same tensor, computed by the model.
        tolerance: the allowed difference in full precision, relative to the spread of ``own`` or the size of ``size``.
        size: what ``ours`` adds to larger numbers, if the difference is to be compared with that.
    """
    if torch.equal(ours.to(own), own):
        return None
    tolerance, rounding = (tolerance, 1e-5) if exact else (0.05, 0.02)
    computed, expected = _array(ours), _array(own)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = np.abs(computed - expected)
    difference[np.isnan(difference)] = np.inf
    difference[(computed == expected) | (np.isnan(computed) & np.isnan(expected))] = 0.0
    sound = np.where(np.isfinite(expected), expected, 0.0)
    allowed = tolerance * np.linalg.norm(sound - sound.mean(-1, keepdims=True))
    if size is not None:
        allowed = tolerance * _norm(_array(size)) + rounding * _norm(expected)
    if not np.linalg.norm(difference) > allowed:
        return None
    most = difference.argmax()
    return float(computed.flat[most]), float(expected.flat[most])


def _array(values: Tensor) -> np.ndarray:
    """Return a tensor in double precision as an array: with few numbers, NumPy takes a fraction of torch's time."""
    return values.detach().cpu().double().numpy()


def _norm(values: np.ndarray) -> np.floating:
    return np.linalg.norm(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))
