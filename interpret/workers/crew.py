"""What a pool of workers needs of the system that runs them: a ``Crew``, which tells what happens as events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from interpret.workers.worker import Report


@dataclass(frozen=True)
class Came:
    """A worker has opened the model, for the first time or in place of one that died."""

    worker: int
    report: Report


@dataclass(frozen=True)
class Done:
    """A call has returned."""

    worker: int
    result: Any


@dataclass(frozen=True)
class Died:
    """A worker is gone, and the call that it was given has no result; the crew tries to replace it."""

    worker: int
    why: str


@dataclass(frozen=True)
class Lost:
    """A worker is gone, or could not open the model, and is not replaced."""

    worker: int
    why: str
    error: Exception | None = None


Event = Came | Done | Died | Lost


class Crew(Protocol):
    """Workers with numbers from 0, of which each does one call at a time."""

    size: int
    """Number of workers that were asked for."""

    def call(self, worker: int, name: str, what: Any) -> None:
        """Give a worker that came a call, as ``Worker.call`` takes it; it has none at the moment."""

    def wait(self, seconds: float) -> Sequence[Event]:
        """Return what has happened, as soon as something has; nothing after some seconds."""

    def dismiss(self, worker: int) -> None:
        """End a worker that came, without a replacement."""
