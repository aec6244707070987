"""The log of an experiment: a line of JSON for each call of a function, only ever appended.

``{folder}/{function}.jsonl`` holds the lines, the folder ``{function}`` beside it large tensors. A version is a hash of
what a call hangs on: the function's own source, its arguments and the model; not of the time, nor of what the
function calls. A line is on the disk before the call returns; one cut off by a kill is told of and left out.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interpret.bench.values import Encoder, decode
from interpret.errors import InputError, RunError, unknown
from interpret.storage import provenance
from interpret.storage.disk import append_line

FORMAT = 1
ENDING = ".jsonl"
_SHOWN = 100
COLUMNS = ("version", "time", "seconds", "model", "arguments", "result")


@dataclass(frozen=True, eq=False)
class LoggedRun:
    """A call, as it was logged."""

    function: str
    version: str
    """16 hex digits: the same for the same source, arguments and model."""
    time: str
    """When the call began, in UTC."""
    seconds: float
    """How long it took."""
    source: str
    """Of the function, with its decorators."""
    arguments: dict[str, Any]
    """By name, with defaults."""
    result: Any
    """What the call returned; ``Unkept`` in place of what cannot be stored."""
    model: dict[str, Any]
    """Name, class, weights and number formats."""
    libraries: dict[str, str]
    """Versions of Python and libraries."""
    torch_seed: int
    """What torch's generator was last seeded with when the call began."""


@dataclass(frozen=True)
class Call:
    """A call that is about to run, and where it will be logged."""

    folder: Path
    name: str
    """Of the log."""
    source: str
    model: dict[str, Any]
    arguments: dict[str, Any]
    """Encoded."""
    torch_seed: int

    @property
    def version(self) -> str:
        """Hash what the call hangs on; of the model what it is, not the folder it was opened from."""
        model = {key: value for key, value in self.model.items() if key != "name"}
        decisive = [self.name, self.source, model, self.arguments]
        return hashlib.sha256(_json(decisive, sort_keys=True)).hexdigest()[:16]

    def write(self, result: Any, time: datetime, seconds: float) -> None:
        """Append a line for the call, durably.

        Raises:
            RunError: if the disk does not take it.
        """
        line = {
            "format": FORMAT,
            "function": self.name,
            "version": self.version,
            "time": time.isoformat(timespec="seconds"),
            "seconds": seconds,
            "arguments": self.arguments,
            "result": Encoder(self.folder / self.name, keep_text=True).encode(result, "the result"),
            "source": self.source,
            "model": self.model,
            "libraries": provenance.versions(),
            "torch_seed": self.torch_seed,
        }
        path = _path(self.folder, self.name)
        try:
            torn = append_line(path, _json(line))
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error
        if torn:
            warnings.warn(f"{path}: dropped a last line that was cut off ({torn} bytes)", stacklevel=4)


def prepare(folder: Path, name: str, source: str, model: dict[str, Any], arguments: Mapping[str, Any]) -> Call:
    """Make ready to log a call, so that what cannot be logged is refused before it runs.

    Raises:
        Unstorable: naming the argument that cannot be stored.
        RunError: if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror}") from error
    encoder = Encoder(folder / name)
    encoded = {key: encoder.encode(value, f"{name}(): argument {key!r}") for key, value in arguments.items()}
    return Call(folder, name, source, model, encoded, torch.initial_seed())


def versions(folder: Path, name: str) -> pd.DataFrame:
    """Return a row for each line of a log, as it was written."""
    rows = [
        {
            **line,
            "model": line["model"]["name"],
            "arguments": _short(line["arguments"]),
            "result": _short(line["result"]),
        }
        for line in _lines(folder, name)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def read_version(folder: Path, name: str, version: str) -> LoggedRun:
    """Return the latest call of a version."""
    lines = {line["version"]: line for line in _lines(folder, name)}
    if version not in lines:
        raise InputError(unknown(f"version of {name}", version, lines))
    line, files = lines[version], folder / name
    kept = {field: line[field] for field in ("function", "version", "time", "seconds", "source", "model", "libraries")}
    return LoggedRun(
        **kept,
        arguments={key: decode(value, files) for key, value in line["arguments"].items()},
        result=decode(line["result"], files),
        torch_seed=line["torch_seed"],
    )


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the whole lines of a log."""
    path = _path(folder, name)
    if not path.is_file():
        there = sorted(each.name.removesuffix(ENDING) for each in folder.glob(f"*{ENDING}"))
        raise InputError(unknown("log", name, there) if there else f"{folder} holds no log yet")
    *whole, torn = path.read_bytes().split(b"\n")
    if torn:
        warnings.warn(f"{path}: left out a last line that was cut off ({len(torn)} bytes)", stacklevel=4)
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
            if line["format"] != FORMAT:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}: line {number} was not written by this version of the log") from None
        lines.append(line)
    return lines


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}{ENDING}"


def _short(stored: Any) -> str:
    """Return the beginning of a stored value, for a table."""
    text = json.dumps(stored, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _json(value: Any, *, sort_keys: bool = False) -> bytes:
    """Write strict JSON on one line; a lone surrogate becomes its JSON escape."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, sort_keys=sort_keys)
    return text.encode("utf-8", "backslashreplace")


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)
