"""The cases that ``make gpu`` runs on every model; ``exact.py`` and ``speed.py`` show how one is written."""

from collections.abc import Callable

from benchmarks.gpu import exact, speed
from benchmarks.gpu.comparing import Bench, Exactness, Speed

EXACT: dict[str, Callable[[Bench], Exactness]] = {
    "surgery": exact.surgery,
    "trace": exact.trace,
    "interpretation": exact.interpretation,
    "gradients at all layers": exact.layers,
    "gradients at the embeddings": exact.gradients,
    "masked tokens": exact.masked,
}
SPEED: dict[str, Callable[[Bench], Speed]] = {
    "trace": speed.trace,
    "interpretation": speed.interpretation,
    "gradients at all layers": speed.layers,
    "surgery, forward": speed.surgery_forward,
    "surgery, generate": speed.surgery_generate,
}
