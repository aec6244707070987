"""Finished parts of the units that a run has not finished, so that a kill costs one part and not one unit.

A part is a result that a unit is made of, such as one interpretation of a prompt, or the trace of a fact by one
mediator. The parts are lines of ``unfinished.jsonl`` in the run folder; the file is deleted once their units are in the
table, so a complete run does not contain it. Parts are only a memory of results: a damaged line is computed again.
"""

import json
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interpret.errors import RunError
from interpret.storage.disk import append_durably, cut, sync

PARTS = "unfinished.jsonl"


class StoredParts:
    """The parts that are on disk; without a path, no part is stored."""

    def __init__(self, path: Path | None = None, pending: Collection[str] = ()) -> None:
        """Read the parts of ``pending`` units from a file, if it exists."""
        self._path = path
        self._values: dict[tuple[str, str], Any] = {}
        self._size = 0
        if path is not None and path.exists():
            self._read(path.read_bytes())
            self.forget_all_but(pending)

    def __len__(self) -> int:
        """Return the number of stored parts."""
        return len(self._values)

    @property
    def folder(self) -> Path | None:
        """The run folder; None if no part is stored."""
        return None if self._path is None else self._path.parent

    def get(self, unit: str, part: str) -> Any:
        """Return the stored value of a part, a JSON value; None if there is none."""
        return self._values.get((unit, part))

    def keep(self, values: Mapping[tuple[str, str], Any]) -> None:
        """Store (unit, part) -> JSON value; when this returns, the values are on disk.

        Raises:
            RunError: if they cannot be written.
        """
        if self._path is None or not values:
            return
        data = b"".join(_line(*key, value) for key, value in values.items())
        try:
            if not self._path.exists():
                self._path.touch()
                sync(self._path.parent)
            cut(self._path, self._size)  # a damaged or incomplete line at the end
            append_durably(self._path, data)
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._size += len(data)
        self._values |= values

    def forget_all_but(self, pending: Collection[str]) -> None:
        """Delete the file if it has no part of a pending unit."""
        pending = set(pending)
        if not any(unit in pending for unit, _ in self._values):
            self._values, self._size = {}, 0
            if self._path is not None:
                with suppress(OSError):  # what remains does no harm: parts are looked up by pending units
                    self._path.unlink(missing_ok=True)

    def count(self, pending: Collection[str]) -> int:
        """Return the number of stored parts of pending units."""
        pending = set(pending)
        return sum(unit in pending for unit, _ in self._values)

    def _read(self, data: bytes) -> None:
        """Read the lines up to the first that is damaged or incomplete."""
        for line in data.splitlines(keepends=True):
            try:
                unit, part, crc32, value = json.loads(line)
                if line != _line(unit, part, value) or zlib.crc32(_json(value)) != crc32:
                    return
                self._values[unit, part] = value
            except (ValueError, TypeError, RecursionError):
                return
            self._size += len(line)


@dataclass(frozen=True)
class UnitParts:
    """The stored parts of one unit; by default, no part is stored."""

    parts: StoredParts = field(default_factory=StoredParts)
    unit: str = ""

    @property
    def folder(self) -> Path | None:
        """The run folder; None if no part is stored."""
        return self.parts.folder

    def get(self, part: str) -> Any:
        """Return the stored value of a part, a JSON value; None if there is none."""
        return self.parts.get(self.unit, part)

    def keep(self, values: Mapping[str, Any]) -> None:
        """Store part -> JSON value, see ``StoredParts.keep``."""
        self.parts.keep({(self.unit, part): value for part, value in values.items()})


def _line(unit: str, part: str, value: Any) -> bytes:
    return _json([unit, part, zlib.crc32(_json(value)), value]) + b"\n"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
