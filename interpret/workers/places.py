"""How many cores and GPUs of a machine a worker occupies, so that as many workers as were asked for have a place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interpret.models.opening import Opening
from interpret.workers.settings import Workers


@dataclass(frozen=True)
class Place:
    """What a worker occupies on a machine."""

    cpus: int
    gpus: float


def place_of(workers: Workers, opening: Opening, nodes: Sequence[Mapping[str, float]]) -> Place:
    """Return the largest place that as many workers as possible fit into.

    Args:
        workers: how many workers, with how many GPUs.
        opening: how they open the model; on ``cpu`` they need no GPU.
        nodes: the resources of each machine, ``CPU`` and ``GPU``.
    """
    gpus = workers.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if opening.device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
    cpus = 1
    while _n_places(nodes, cpus + 1, gpus) >= min(workers.count, max(1, _n_places(nodes, 1, gpus))):
        cpus += 1
    return Place(cpus, gpus)


def _n_places(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    return sum(int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else 1e9)) for node in nodes)
