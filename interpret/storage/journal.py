"""The journal of a run, ``progress.jsonl``: one line per finished unit, written after its rows.

Rows after the last unit of the journal belong to an interrupted unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interpret.errors import RunError
from interpret.reading import open_file, parse_json
from interpret.storage.layout import WHAT_TO_DO


@dataclass(frozen=True)
class Entry:
    """One line of the journal: a finished unit."""

    unit: str
    rows: int
    """Number of rows of the unit; 0 if it was dropped."""
    size: int
    """Size of the table in bytes after the unit."""
    crc32: int
    """Checksum of the rows of the unit, to detect a table that was edited by hand."""
    dropped: str | None
    """Reason why the unit was dropped; None if it was kept."""

    def follows(self, size: int) -> bool:
        """Return whether the values have the types and ranges of an entry after a table of ``size`` bytes."""
        numbers = (self.rows, self.size, self.crc32)
        return (
            isinstance(self.unit, str)
            and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
            and self.size >= size
            and (self.dropped is None or isinstance(self.dropped, str))
        )


def read_journal(path: Path) -> tuple[list[Entry], int]:
    """Return the entries of the complete lines and their size in bytes; a kill may have left a partial last line."""
    with open_file(path) as file:
        data = file.read()
    end = data.rfind(b"\n") + 1
    entries: list[Entry] = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
        try:
            entry = Entry(**parse_json(line))
        except (ValueError, TypeError):
            entry = None
        if entry is None or not entry.follows(entries[-1].size if entries else 1):
            raise RunError(f"{path}: line {number} is not a valid entry; {WHAT_TO_DO}")
        entries.append(entry)
    return entries, end


def table_size(entries: Sequence[Entry], header: bytes) -> int:
    """Return the size in bytes of the header and the complete units."""
    return entries[-1].size if entries else len(header)
