"""The rule for numbers that are not finite (NaN or infinity), the same in every analysis, table and figure.

A model can give such numbers: float16 overflows, and weights can be damaged. They stay where they are, so that they
are marked, and never take part in a choice or a number about other values: statistics leave them out
(``interpret.stats``), sorting puts them last (``order``, ``top``), the most likely token is one whose logit can be read
(``readable``), and a message counts them (``left_out``, ``warn``).
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help imports this module: it needs neither numpy nor torch
    from numpy.typing import ArrayLike
    from torch import Tensor

MODEL_GIVES_NAN = "the model gives NaN here; open it in float32, or check its weights"
NOTHING_FINITE = "are not finite; open the model in float32, or check its weights: it gives NaN"
"""What to say if no number is finite; the second follows a plural."""
_counted: ContextVar[bool] = ContextVar("counted", default=False)


def order(value: float) -> tuple[bool, float]:
    """Return a key that sorts numbers upwards, those that are not finite last.

    >>> sorted([2.0, float("nan"), 1.0, float("-inf")], key=order)
    [1.0, 2.0, nan, -inf]
    """
    return (False, value) if math.isfinite(value) else (True, 0.0)


def descending(value: float) -> tuple[bool, float]:
    """Return a key that sorts numbers downwards, those that are not finite last.

    >>> sorted([2.0, float("inf"), 3.0], key=descending)
    [3.0, 2.0, inf]
    """
    return order(-value)


def readable(logits: "Tensor") -> "Tensor":
    """Return logits, or other scores, in which NaN and infinity are replaced by -inf, so that none of them is chosen.

    -inf is kept: it is the logit of a token that a model excludes.
    """
    return logits.masked_fill(~(logits < math.inf), -math.inf)


def top(scores: "Tensor", k: int) -> tuple["Tensor", "Tensor"]:
    """Return the k largest of the last dimension and their indices; those that are not finite come last."""
    at = readable(scores).topk(k).indices
    return scores.gather(-1, at), at


@dataclass
class Tally:
    """Counts numbers that are not finite."""

    bad: int = 0
    """Number of those that are not."""
    total: int = 0
    """Number of all."""

    def add(self, values: "ArrayLike | Tensor") -> None:
        """Count more numbers, of any shape, on any device."""
        import numpy as np

        array = np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values, dtype=np.float64)
        self.bad += int((~np.isfinite(array)).sum())
        self.total += array.size

    def left_out(self, what: str, of: str) -> str:
        """Return a message that counts the numbers that are not finite; "" if all are finite.

        Args:
            what: the plural of what has one of the numbers, such as ``cells``.
            of: what leaves them out, such as ``the averages``.
        """
        if not self.bad:
            return ""
        if self.bad == self.total:
            return f"none of {self.total} {what} is finite: {MODEL_GIVES_NAN}"
        verb = "is" if self.bad == 1 else "are"
        return f"{self.bad} of {self.total} {what} {verb} not finite (NaN or infinity) and left out of {of}"


def left_out(values: "ArrayLike | Tensor", what: str, of: str) -> str:
    """Return a message that counts the numbers that are not finite; "" if all are finite. See ``Tally.left_out``.

    >>> left_out([0.5, float("nan"), 0.25], "cells", "the averages")
    '1 of 3 cells is not finite (NaN or infinity) and left out of the averages'
    """
    tally = Tally()
    tally.add(values)
    return tally.left_out(what, of)


@contextmanager
def counted_once() -> Iterator[None]:
    """Silence ``warn`` inside the ``with`` block, because a run counts the numbers of all its units at the end."""
    token = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(token)


def warn(message: str) -> None:
    """Warn with a message of ``left_out``, at the caller of a public function; do nothing if it is empty."""
    if message and not _counted.get():
        warnings.warn(message, RuntimeWarning, stacklevel=3)
