"""The log of an experiment: an append-only file with one JSON line per call of a function.

``{folder}/{function}.jsonl`` holds the lines, the folder ``{folder}/{function}`` large tensors. The version of a call
is a hash of the function's own source, its arguments and the model. It does not depend on the time, nor on the source
of other functions that the function calls. A line is on disk before the call returns; a line that was cut off because
the process was killed is skipped with a warning.
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
from safetensors import SafetensorError

from interpret.bench.values import Encoder, decode
from interpret.errors import InputError, RunError, one_line, unknown
from interpret.reading import parse_json, read_bytes
from interpret.storage import provenance
from interpret.storage.disk import append_line

FORMAT = 1
ENDING = ".jsonl"
_SHOWN = 100
_LINE: dict[str, Any] = {
    "function": str, "version": str, "time": str, "seconds": (int, float), "arguments": dict, "result": object,
    "source": str, "model": dict, "libraries": dict, "torch_seed": int,
}  # fmt: skip
"""The keys of a log line, with the types of their values."""
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SafetensorError)
"""What decoding a stored value raises if the value was changed by hand."""
COLUMNS = ("version", "time", "seconds", "model", "arguments", "result")


@dataclass(frozen=True, eq=False)
class LoggedRun:
    """A logged call."""

    function: str
    version: str
    """16 hex digits: the same for the same source, arguments and model."""
    time: str
    """Start of the call, UTC, ISO 8601."""
    seconds: float
    """Duration of the call."""
    source: str
    """Source of the function, with its decorators."""
    arguments: dict[str, Any]
    """Arguments by name, with defaults."""
    result: Any
    """The return value; ``Unkept`` in place of values that cannot be stored."""
    model: dict[str, Any]
    """Name, class, weights and dtypes of the model."""
    libraries: dict[str, str]
    """Versions of Python and of the libraries."""
    torch_seed: int
    """Seed of torch's default generator at the start of the call (``torch.initial_seed``)."""


@dataclass(frozen=True)
class Call:
    """A call that is about to run, with the log it will be written to."""

    folder: Path
    name: str
    """Name of the log."""
    source: str
    model: dict[str, Any]
    arguments: dict[str, Any]
    """Arguments by name, encoded as JSON values."""
    torch_seed: int

    @property
    def version(self) -> str:
        """Hash of the name, source, arguments and model; independent of the folder the model was loaded from."""
        model = {key: value for key, value in self.model.items() if key != "name"}
        decisive = [self.name, self.source, model, self.arguments]
        return hashlib.sha256(_json(decisive, sort_keys=True)).hexdigest()[:16]

    def write(self, result: Any, time: datetime, seconds: float) -> None:
        """Append a line for the call, and flush it to disk.

        Raises:
            RunError: if the line cannot be written.
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
            warnings.warn(f"{path}: removed an incomplete last line ({torn} bytes)", stacklevel=4)


def prepare(folder: Path, name: str, source: str, model: dict[str, Any], arguments: Mapping[str, Any]) -> Call:
    """Prepare to log a call, so that arguments that cannot be stored are refused before the call runs.

    Raises:
        Unstorable: naming the argument that cannot be stored.
        RunError: if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be created: {error.strerror}") from error
    encoder = Encoder(folder / name)
    encoded = {key: encoder.encode(value, f"{name}(): argument {key!r}") for key, value in arguments.items()}
    return Call(folder, name, source, model, encoded, torch.initial_seed())


def versions(folder: Path, name: str) -> pd.DataFrame:
    """Return one row per line of a log, in the order of the log."""
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
    try:
        arguments = {key: decode(value, files) for key, value in line["arguments"].items()}
        result = decode(line["result"], files)
    except _DAMAGE as error:
        problem = one_line(f"{type(error).__name__}: {error}")
        raise RunError(f"{_path(folder, name)}: version {version} is damaged: {problem}") from None
    kept = {field: line[field] for field in ("function", "version", "time", "seconds", "source", "model", "libraries")}
    return LoggedRun(
        **kept,
        arguments=arguments,
        result=result,
        torch_seed=line["torch_seed"],
    )


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the complete lines of a log, decoded from JSON."""
    path = _path(folder, name)
    if not path.is_file():
        there = sorted(each.name.removesuffix(ENDING) for each in folder.glob(f"*{ENDING}"))
        raise InputError(unknown("log", name, there) if there else f"{folder} has no logs yet")
    *whole, torn = read_bytes(path).split(b"\n")
    if torn:
        warnings.warn(f"{path}: skipped an incomplete last line ({len(torn)} bytes)", stacklevel=4)
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            line = parse_json(text)
        except InputError:
            line = None
        if not _is_line(line):
            raise RunError(f"{path}: line {number} is not a log line of format {FORMAT}")
        lines.append(line)
    return lines


def _is_line(line: Any) -> bool:
    """Return whether a value has the keys of a log line, with their types."""
    return (
        isinstance(line, dict)
        and line.get("format") == FORMAT
        and line.keys() >= _LINE.keys()
        and all(isinstance(line[key], kind) for key, kind in _LINE.items())
        and "name" in line["model"]
    )


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}{ENDING}"


def _short(stored: Any) -> str:
    """Return a stored value as JSON text, truncated for a table."""
    text = json.dumps(stored, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _json(value: Any, *, sort_keys: bool = False) -> bytes:
    """Encode a value as strict JSON on one line, UTF-8; a lone surrogate becomes its JSON escape."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, sort_keys=sort_keys)
    return text.encode("utf-8", "backslashreplace")


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)
