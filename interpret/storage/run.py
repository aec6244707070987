"""An open run: its finished and pending units, and the methods that write units.

The rows of a unit are appended to the table and flushed to disk; then a line for the unit is appended to the journal.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from interpret.errors import RunError
from interpret.records import csv_header, to_csv
from interpret.storage.disk import append_durably, cut
from interpret.storage.journal import Entry, table_size
from interpret.storage.layout import PROGRESS, TABLE
from interpret.storage.parts import PARTS, StoredParts


class Run:
    """An open run folder: its finished and pending units, and the methods that write units."""

    def __init__(self, folder: Path, record_type: type, units: Sequence[str], entries: list[Entry]) -> None:
        """Resume after ``entries``, the finished units; only ``open_run`` creates instances."""
        self.folder = folder
        self.units = list(units)
        self._record_type = record_type
        self._header = csv_header(record_type)
        self._entries = entries
        self._open = True
        self.parts = StoredParts(folder / PARTS, self.pending)

    @property
    def n_parts(self) -> int:
        """Number of parts of pending units that are on disk."""
        return self.parts.count(self.pending)

    @property
    def finished(self) -> list[str]:
        """The finished units, kept and dropped, in order."""
        return [entry.unit for entry in self._entries]

    @property
    def kept(self) -> list[str]:
        """The finished units that were not dropped, in order."""
        return [entry.unit for entry in self._entries if entry.dropped is None]

    @property
    def pending(self) -> list[str]:
        """The remaining units, in the order in which they must be written."""
        return self.units[len(self._entries) :]

    @property
    def dropped(self) -> dict[str, str]:
        """Dropped unit -> reason."""
        return {entry.unit: entry.dropped for entry in self._entries if entry.dropped is not None}

    @property
    def counts(self) -> dict[str, int]:
        """Number of all units, ``in``; of ``kept`` and of ``dropped`` units; and of ``rows`` in the table."""
        rows, dropped = sum(entry.rows for entry in self._entries), len(self.dropped)
        return {"in": len(self.units), "kept": len(self._entries) - dropped, "dropped": dropped, "rows": rows}

    def write(self, unit: str, records: Iterable[object]) -> None:
        """Append all rows of one unit; when this returns, they are on disk and survive a power failure.

        Args:
            unit: the first of ``pending``. The fixed order makes the table of a resumed run equal to that of an
                uninterrupted run.
            records: all records of the unit; a generator is exhausted before anything is written.

        Raises:
            RunError: if the rows cannot be written; earlier units are on disk.
            ValueError: if the unit is not the first of ``pending``, or a text cannot be encoded as UTF-8.
            TypeError: if a record is not of the run's record type.
        """
        records = list(records)
        for record in records:
            if type(record) is not self._record_type:
                raise TypeError(f"unit {unit!r}: expected records of type {self._record_type.__name__}, got {record!r}")
        self._append(unit, to_csv(records), rows=len(records), dropped=None)

    def drop(self, unit: str, reason: str) -> None:
        """Record that a unit has no rows, with the reason; a resumed run does not try the unit again.

        Raises:
            RunError: if the journal cannot be written.
            ValueError: if the unit is not the first of ``pending``.
        """
        self._append(unit, b"", rows=0, dropped=reason)

    def _append(self, unit: str, text: bytes, *, rows: int, dropped: str | None) -> None:
        """Add one unit to both table and journal, or leave both unchanged."""
        done, table, journal = len(self._entries), self.folder / TABLE, self.folder / PROGRESS
        if not self._open:
            raise ValueError(f"{self.folder}: this Run is closed; open the folder again with open_run")
        expected = self.units[done] if done < len(self.units) else None
        if unit != expected:
            raise ValueError(f"unit {unit!r} is out of order; the next unit is {expected!r}")
        size, journal_size = table_size(self._entries, self._header), journal.stat().st_size
        entry = Entry(unit, rows, size + len(text), zlib.crc32(text), dropped)
        self._open = False  # after a failed write the files are in an unknown state until the next opening reads them
        try:
            append_durably(table, text)
            append_durably(journal, json.dumps(asdict(entry)).encode() + b"\n")
        except BaseException as error:
            with suppress(OSError):  # the journal first: it must not list rows that are no longer in the table
                cut(journal, journal_size)
                cut(table, size)
            if isinstance(error, OSError):
                raise RunError(
                    f"{error.filename}: cannot write unit {unit!r}: {error.strerror}; {done} of {len(self.units)} "
                    f"units are on disk, and the same command resumes the run"
                ) from error
            raise
        self._entries.append(entry)
        self.parts.forget_all_but(self.pending)
        self._open = True
