"""Recorded runs that several sweeps share: sweeps of the same texts on the same model record their runs once.

Several analyses of one prompt patch the same clean and corrupted runs. Inside ``KeptRuns.shared``, sweeps and estimates
take a run whose input they have in common from the runs that are kept, instead of recording it again.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.engine.layers import Point
from interpret.engine.recording import RecordedRun, record_run
from interpret.engine.trunk import Trunk, check_trunk

POINTS: frozenset[Point] = frozenset({"attn_out", "mlp_out", "heads"})
"""The points that every kept run has: all that sweeps restore and hold, except neurons, which need the most memory."""


@dataclass
class _Kept:
    """A recorded run."""

    trunk: nn.Module
    """The module of the model that runs the layers."""
    run: RecordedRun
    checked: bool = False
    """Whether its first row was compared with the model's own result."""


@dataclass
class KeptRuns:
    """Recorded runs of models whose weights do not change as long as the runs are kept."""

    _kept: list[_Kept] = field(default_factory=list)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let the sweeps and estimates inside the ``with`` block take their runs from these, and add new ones."""
        token = _shared.set(self)
        try:
            yield
        finally:
            _shared.reset(token)

    def clear(self) -> None:
        """Forget all runs, which frees their memory."""
        self._kept.clear()

    def found(self, trunk: Trunk, start: Tensor) -> _Kept:
        """Return the run with an input of the first layer, [S, T, D]; if it is not kept, record it and keep it."""
        module = trunk.anatomy.trunk
        for one in self._kept:
            if one.trunk is module and torch.equal(one.run.states[0], start):
                return one
        self._kept.append(_Kept(module, record_run(trunk.layers, start, POINTS)))
        return self._kept[-1]


_shared: ContextVar[KeptRuns | None] = ContextVar("shared", default=None)


def recorded(
    model: PreTrainedModel, trunk: Trunk, embeddings: Tensor, points: Collection[Point], *, check: bool = False
) -> RecordedRun:
    """Return the record of a run: one that is shared here, or else that of a new pass.

    Args:
        model: the model.
        trunk: its parts.
        embeddings: [S, T, width], the word embeddings of the run.
        points: the points that the record must have.
        check: whether the first row is compared with the model's own result; a kept run is compared once.

    Raises:
        UnsupportedModelError: if running the model part by part gives another result than its own.
    """
    shared, start = _shared.get(), trunk.enter(embeddings)
    # Tensors of inference mode cannot be differentiated later.
    if shared is None or not POINTS.issuperset(points) or start.is_inference():
        kept = _Kept(trunk.anatomy.trunk, record_run(trunk.layers, start, points))
    else:
        kept = shared.found(trunk, start)
    if check and not kept.checked:
        check_trunk(model, trunk, embeddings[:1], kept.run.states[-1][:1])
        kept.checked = True
    return kept.run
