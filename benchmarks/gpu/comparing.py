"""How a case is compared with its plain implementation on one model, and becomes a row of the tables."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.gpu.measuring import Timed, flops_of, on_gpu, timed, waits_of
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.table import ExactRow, SpeedRow


@dataclass(frozen=True)
class Bench:
    """A model to run cases on."""

    shape: Shape
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rate: float
    """Operations per second of a large matrix product in the model's dtype."""

    @property
    def dtype(self) -> str:
        """Name of the dtype of the weights."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def is_exact(self) -> bool:
        """Whether the dtype is float32, in which results must agree with plain ones themselves."""
        return self.model.dtype == torch.float32

    @property
    def runs(self) -> int:
        """How often each implementation is timed."""
        return 3 if on_gpu(self.model.device) else 1

    @cached_property
    def in_float32(self) -> PreTrainedModel:
        """The model with the same weights in float32."""
        return copy.deepcopy(self.model).float()


def apart(ours: Tensor, plain: Tensor) -> float:
    """Return the largest difference of results, as a share of the largest plain one."""
    ours, plain = (found.double().cpu() for found in (ours, plain))
    assert ours.shape == plain.shape, f"the results have shapes {tuple(ours.shape)} and {tuple(plain.shape)}"
    return ((ours - plain).abs().max() / plain.abs().max()).item()


@dataclass(frozen=True)
class Exactness:
    """Results of ours, and the function that computes them in a plain way."""

    ours: Tensor
    plain: Callable[[PreTrainedModel], Tensor]
    """A model with the same weights -> what ``ours`` should be."""
    allowed: float = 1e-4
    """Largest difference in float32, as a share of the largest result."""


@dataclass(frozen=True)
class Speed:
    """Two implementations of one computation."""

    plain: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    target: float
    """Required ratio: of the plain time to ours, or if ``at_most``, of our time to the plain one."""
    at_most: bool = False
    scale: float = 1.0
    """How many times the plain implementation would have to run for what ours computes."""
    allowed: float = 1e-4
    """Largest difference of the results in float32, as a share of the largest."""
    difference: Callable[[Tensor, Tensor], float] = apart
    """(results of ours, plain results) -> how far they are apart."""


def exact_row(name: str, bench: Bench, make: Callable[[Bench], Exactness]) -> ExactRow:
    """Compare results of ours with plain ones.

    In float32 the largest difference is allowed to be that of rounding. Lower precision rounds both differently; there,
    ours may be at most twice as far as the plain results from what the same weights give in float32, all together.
    """
    case = make(bench)
    plain = case.plain(bench.model)
    if bench.is_exact:
        return ExactRow(name, bench.shape.name, bench.dtype, apart(case.ours, plain), case.allowed)
    right = case.plain(bench.in_float32).double().cpu()
    own, others = (((found.double().cpu() - right).norm() / right.norm()).item() for found in (case.ours, plain))
    return ExactRow(name, bench.shape.name, bench.dtype, own, 2 * others)


def speed_row(name: str, bench: Bench, make: Callable[[Bench], Speed]) -> SpeedRow:
    """Time both implementations alternately, after a run of each that is not timed."""
    case, device = make(bench), bench.model.device
    difference = case.difference(case.ours(), case.plain())
    plain: list[Timed[Tensor]] = []
    ours: list[Timed[Tensor]] = []
    for turn in range(bench.runs):
        for work, times in ((case.plain, plain), (case.ours, ours))[:: 1 if turn % 2 else -1]:
            times.append(timed(work, device))
    slow, fast = (median(one.seconds for one in some) for some in (plain, ours))
    ratio = median(a.seconds * case.scale / b.seconds for a, b in zip(plain, ours, strict=True))
    return SpeedRow(
        case=name,
        shape=bench.shape.name,
        dtype=bench.dtype,
        plain_seconds=slow * case.scale,
        seconds=fast,
        ratio=1 / ratio if case.at_most else ratio,
        target=case.target,
        at_most=case.at_most,
        difference=difference,
        allowed=case.allowed if bench.is_exact else None,
        plain_peak=max_of([one.peak for one in plain]),
        peak=max_of([one.peak for one in ours]),
        share_of_rate=flops_of(case.ours) / fast / bench.rate,
        waits=waits_of(case.ours) if on_gpu(device) else None,
    )


def max_of(peaks: list[float | None]) -> float | None:
    """Return the largest peak; None if none was measured."""
    return max((peak for peak in peaks if peak is not None), default=None)
