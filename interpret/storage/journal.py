"""The journal of a run, ``progress.jsonl``: one line per finished unit, written after its rows and files.

Rows after the last unit of the journal belong to an interrupted unit. A line with only a unit and its files replaces
the checksums of files that were lost and made again.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from interpret.errors import RunError
from interpret.reading import open_file, parse_json
from interpret.storage.layout import WHAT_TO_DO


@dataclass(frozen=True)
class Entry:
    """A finished unit, as the journal lists it."""

    unit: str
    rows: int
    """Number of rows of the unit; 0 if it was dropped."""
    size: int
    """Size of the table in bytes after the unit."""
    crc32: int
    """Checksum of the rows of the unit, to detect a table that was edited by hand."""
    dropped: str | None
    """Reason why the unit was dropped; None if it was kept."""
    dropped_parts: Mapping[str, str] = field(default_factory=dict)
    """Part of a kept unit that has no result -> reason."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Name of a further file of the unit in the run folder -> its checksum (CRC-32)."""

    def follows(self, size: int) -> bool:
        """Return whether the values have the types and ranges of an entry after a table of ``size`` bytes."""
        return (
            isinstance(self.unit, str)
            and all(map(_is_count, (self.rows, self.size, self.crc32)))
            and self.size >= size
            and (self.dropped is None or isinstance(self.dropped, str))
            and isinstance(self.dropped_parts, dict)
            and all(isinstance(reason, str) for reason in self.dropped_parts.values())
            and are_checksums(self.files)
        )

    def line(self) -> bytes:
        """Return the line of the journal; what is empty is left out."""
        content = asdict(self)
        for name in ("dropped_parts", "files"):
            if not content[name]:
                del content[name]
        return json.dumps(content).encode() + b"\n"


def files_line(unit: str, files: Mapping[str, int]) -> bytes:
    """Return the line that replaces the checksums of the files of a unit."""
    return json.dumps({"unit": unit, "files": files}).encode() + b"\n"


def checksums(files: Mapping[str, bytes]) -> dict[str, int]:
    """Return the CRC-32 of the contents of files, by name."""
    return {name: zlib.crc32(content) for name, content in files.items()}


def is_intact(path: Path, crc32: int) -> bool:
    """Return whether a file is there and has a checksum."""
    try:
        with open_file(path) as file:
            return zlib.crc32(file.read()) == crc32
    except (OSError, ValueError):
        return False


def read_journal(path: Path) -> tuple[list[Entry], int]:
    """Return the entries of the complete lines and their size in bytes; a kill may have left a partial last line."""
    with open_file(path) as file:
        data = file.read()
    end = data.rfind(b"\n") + 1
    entries: dict[str, Entry] = {}
    size = 1
    for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
        entry = _entry(line, entries, size)
        if entry is None:
            raise RunError(f"{path}: line {number} is not a valid entry; {WHAT_TO_DO}")
        entries[entry.unit] = entry
        size = max(size, entry.size)
    return list(entries.values()), end


def _entry(line: bytes, earlier: Mapping[str, Entry], size: int) -> Entry | None:
    """Return the entry that a line adds or replaces; None if the line is invalid.

    Args:
        line: the line.
        earlier: the entries of earlier lines, by unit.
        size: size of the table after these.
    """
    try:
        content: Any = parse_json(line)
        if content.keys() == {"unit", "files"} and are_checksums(content["files"]):
            return replace(earlier[content["unit"]], files=content["files"])
        entry = Entry(**content)
        return entry if entry.follows(size) and entry.unit not in earlier else None
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def are_checksums(value: object) -> bool:
    """Return whether a value of a JSON file has names of files and checksums."""
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def table_size(entries: Sequence[Entry], header: bytes) -> int:
    """Return the size in bytes of the header and the complete units."""
    return entries[-1].size if entries else len(header)
