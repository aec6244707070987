"""A worker: a process that opens the model and does one call after the other. Does not import ray.

Everything that a worker needs is in its ``Setup`` or in a call, because a worker that died is replaced by a new one.
It gets no run folder: only the process that started the run writes.
"""

import os
import pickle
import socket
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from interpret.errors import InterpretError, RunError
from interpret.models.identity import model_circumstances, model_identity
from interpret.models.opening import Opening
from interpret.storage.parts import StoredParts
from interpret.storage.provenance import versions
from interpret.work.extensions import load_extensions, recorded
from interpret.workers.jobs import Job

ASK, DO, SETTLE = "ask", "do", "settle"
"""The calls of a worker."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs to start."""

    job: bytes
    """The pickled ``Job``. Its classes may be defined by extensions, so a worker loads these before it reads it."""
    opening: Opening
    imports: tuple[str, ...]
    """Extension files."""
    software: Mapping[str, Any]
    """The result of ``software`` where the run was started; that of a worker has to be equal."""
    threads: int
    """Number of threads of torch."""
    folder: str
    """The current folder of the process that started the run; a worker that has it works there, so that relative
    paths of a model mean the same."""


@dataclass(frozen=True)
class Report:
    """What a worker tells when it has opened the model."""

    identity: Mapping[str, Any]
    """The model's identity and that of the extensions; equal for all workers."""
    versions: Mapping[str, str]
    """Versions of Python, the platform and the libraries."""
    device: str
    host: str
    pid: int

    def difference(self, other: "Report") -> str | None:
        """Return the first entry in which the identity of this worker differs from that of another; None if none."""
        return _difference(self.identity, other.identity)


@dataclass(frozen=True)
class Unusable:
    """Why a worker cannot open the model or the job."""

    why: str
    error: InterpretError | None = field(default=None, compare=False)


def software(imports: Sequence[str]) -> dict[str, Any]:
    """Load extensions, and return their hashes and the versions of Python and the libraries, without the platform.

    Raises:
        InputError: if a file cannot be loaded.
    """
    loaded = recorded(load_extensions(imports))["identity"]
    return {**loaded, **{name: version for name, version in versions().items() if name != "platform"}}


def _difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return the first entry that differs, in words; None if there is none."""
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            return f"{key} is {mine.get(key)!r}, not {theirs.get(key)!r}"
    return None


class Worker:
    """The object that lives in the process of a worker."""

    def __init__(self, setup: Setup) -> None:
        with suppress(OSError):
            os.chdir(setup.folder)
        torch.set_num_threads(setup.threads)
        try:
            self._reported: Report | Unusable = self._opened(setup)
        except InterpretError as error:
            self._reported = Unusable(str(error), error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told where the run was started
            self._reported = Unusable(_last_line(error))

    def _opened(self, setup: Setup) -> Report | Unusable:
        here = software(setup.imports)
        if difference := _difference(here, setup.software):
            return Unusable(f"its {difference} ({socket.gethostname()})")
        job: Job = pickle.loads(setup.job)
        model, tokenizer = setup.opening.load()
        self._analysis = job.open(model, tokenizer, _silent)
        found = model_circumstances(model)
        identity = {**model_identity(model), **({"imports": here["imports"]} if "imports" in here else {})}
        return Report(identity, found["versions"], found["device"], socket.gethostname(), os.getpid())

    def back(self) -> Report | Unusable:
        """Return what there is to tell after the start."""
        return self._reported

    def call(self, name: str, what: Any) -> Any:
        """Do a call: ``settle``, ``ask`` a question, or ``do`` what a task says.

        Returns:
            The result, the list of steps for ``do``; or an ``InterpretError`` that ends the run.
        """
        try:
            if name == SETTLE:
                return self._analysis.settle()
            return self._analysis.ask(what) if name == ASK else list(self._analysis.do(what, StoredParts()))
        except InterpretError as error:
            return type(error)(str(error))
        except Exception as error:  # noqa: BLE001 - as above
            return RunError(f"{_last_line(error)}; finished units are on disk")


def _last_line(error: Exception) -> str:
    """Return the type, the message and the last place of an error."""
    places = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}{where}"


def _silent(line: str) -> None:
    pass


def on_device(opening: Opening, gpus: float) -> Opening:
    """Return how a worker with some GPUs opens a model: without any, on the CPU, unless a device is given."""
    undecided = opening.device is None and opening.device_map is None
    return replace(opening, device="cpu") if undecided and not gpus else opening
