"""How many workers do the units of a run, and where. Does not import torch or ray."""

from dataclasses import dataclass

from interpret.errors import InputError

START_TIMEOUT = 600.0
"""Default of ``Workers.start_timeout``, in seconds."""


@dataclass(frozen=True)
class Workers:
    """Processes that open a model each and share the units of a run; see docs/workers.md."""

    count: int = 1
    """Number of workers. One without a ``cluster`` is this process."""
    cluster: str | None = None
    """``auto`` for the Ray cluster that this machine belongs to, or the address ``HOST:PORT`` of one; None to start
    the workers on this machine and to stop them at the end."""
    gpus_per_worker: float | None = None
    """GPUs of each worker; workers share a GPU if it is a fraction. None for one, if there are GPUs."""
    start_timeout: float = START_TIMEOUT
    """Seconds to wait for the first worker, and for another one when all have died."""
    imports: tuple[str, ...] = ()
    """Extension files that each worker loads, as the option ``--import`` does; their paths are the same everywhere."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: if a value is invalid; the message names it.
        """
        if type(self.count) is not int or self.count < 1:
            raise InputError(f"workers is {self.count!r}; give a number of at least 1")
        if self.cluster is not None and (self.cluster.startswith("ray://") or not self._is_address(self.cluster)):
            expected = "give 'auto' on a machine of the cluster, or HOST:PORT, such as 10.0.0.1:6379"
            raise InputError(f"cluster {self.cluster!r} is not understood; {expected}")
        gpus = self.gpus_per_worker
        if gpus is not None and not (0 <= gpus < 1 or (1 <= gpus < 1e6 and gpus == int(gpus))):
            raise InputError(f"gpus_per_worker is {gpus!r}; give a whole number, or a fraction below 1")
        if not 0 < self.start_timeout < 1e9:
            raise InputError(f"start_timeout is {self.start_timeout!r}; give a number of seconds above 0")

    @staticmethod
    def _is_address(words: str) -> bool:
        host, _, port = words.rpartition(":")
        return words == "auto" or bool(host and port.isdecimal())

    @property
    def in_process(self) -> bool:
        """Whether this process does all units."""
        return self.count == 1 and self.cluster is None


def workers_of(workers: int | Workers) -> Workers:
    """Return a number of workers as ``Workers``.

    Raises:
        InputError: if it is below 1.
    """
    return workers if isinstance(workers, Workers) else Workers(workers)
