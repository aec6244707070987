"""An open run: its finished and pending units, and the methods that write units.

The further files of a unit are written first. Then its rows are appended to the table and flushed to disk; then a line
for the unit, with the checksums of both, is appended to the journal.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from interpret.errors import RunError
from interpret.records import csv_header
from interpret.storage.disk import append_durably, cut, write_inside
from interpret.storage.journal import Entry, checksums, files_line, is_intact, table_size
from interpret.storage.layout import PROGRESS, TABLE
from interpret.storage.outcomes import Dropped, Kept, Outcome
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

    def parts_for(self, units: Sequence[str]) -> StoredParts:
        """Return the store for parts of some units; of finished units, which are only made again, nothing is stored."""
        return StoredParts() if set(units).isdisjoint(self.pending) else self.parts

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
    def dropped_parts(self) -> dict[str, dict[str, str]]:
        """Kept unit that lacks some parts -> part -> reason."""
        return {entry.unit: dict(entry.dropped_parts) for entry in self._entries if entry.dropped_parts}

    @property
    def damaged(self) -> list[str]:
        """The kept units of which a further file is missing, or differs from what was written; reads all files."""
        return [
            entry.unit
            for entry in self._entries
            if not all(is_intact(self.folder / name, crc32) for name, crc32 in entry.files.items())
        ]

    @property
    def counts(self) -> dict[str, int]:
        """Number of all units, ``in``; of ``kept`` and of ``dropped`` units; and of ``rows`` in the table."""
        rows, dropped = sum(entry.rows for entry in self._entries), len(self.dropped)
        return {"in": len(self.units), "kept": len(self._entries) - dropped, "dropped": dropped, "rows": rows}

    def write(
        self,
        unit: str,
        records: Iterable[object],
        *,
        files: Mapping[str, bytes] | None = None,
        dropped_parts: Mapping[str, str] | None = None,
    ) -> None:
        """Write one unit; when this returns, its files and rows are on disk and survive a power failure.

        Args:
            unit: the first of ``pending``. The fixed order makes the table of a resumed run equal to that of an
                uninterrupted run.
            records: all records of the unit; a generator is exhausted before anything is written.
            files: contents of the further files of the unit, by name in the run folder, such as ``"grids/a.npz"``.
            dropped_parts: parts of the unit that have no result -> reason.

        Raises:
            RunError: if the unit cannot be written; earlier units are on disk.
            ValueError: if the unit is not the first of ``pending``, or a text cannot be encoded as UTF-8.
            TypeError: if a record is not of the run's record type.
        """
        try:
            rows = Kept.of(self._record_type, records, files=files, dropped_parts=dropped_parts)
        except TypeError as error:
            raise TypeError(f"unit {unit!r}: {error}") from None
        self.take([(unit, rows)])

    def drop(self, unit: str, reason: str) -> None:
        """Record that a unit has no rows, with the reason; a resumed run does not try the unit again.

        Raises:
            RunError: if the journal cannot be written.
            ValueError: if the unit is not the first of ``pending``.
        """
        self.take([(unit, Dropped(reason))])

    def take(self, ready: Sequence[tuple[str, Outcome]]) -> None:
        """Write units; when this returns, their files and rows are on disk and survive a power failure.

        Table and journal are flushed once for all units: on a network file system a flush takes milliseconds.

        Args:
            ready: the first units of ``pending``, in order, with their outcomes.

        Raises:
            RunError: if the units cannot be written; earlier units are on disk.
            ValueError: if the units are not the first of ``pending``.
        """
        entries = [_entry(unit, outcome) for unit, outcome in ready]
        text = b"".join(outcome.csv for _, outcome in ready if isinstance(outcome, Kept))
        files = {name: content for _, one in ready if isinstance(one, Kept) for name, content in one.files.items()}
        self._append(entries, text, files)

    def write_again(self, unit: str, files: Mapping[str, bytes]) -> None:
        """Write the further files of a finished unit that is ``damaged``; they may differ in the last digits.

        Raises:
            RunError: if the files cannot be written.
            ValueError: if the unit is not finished.
        """
        number, found = self.finished.index(unit), checksums(files)
        with self._whole_or_not(unit):
            self._write_files(files)
            if found != self._entries[number].files:
                append_durably(self.folder / PROGRESS, files_line(unit, found))
        self._entries[number] = replace(self._entries[number], files=found)

    def _append(self, entries: Sequence[Entry], text: bytes, files: Mapping[str, bytes]) -> None:
        """Write the files of units, and add the units to table and journal.

        Args:
            entries: the units; their ``size`` is still the length of their rows in bytes.
            text: their rows.
            files: contents of their further files, by name.
        """
        expected = self.units[len(self._entries) :]
        size = table_size(self._entries, self._header)
        sized = []
        for number, entry in enumerate(entries):
            wanted = expected[number] if number < len(expected) else None
            if self._open and entry.unit != wanted:
                raise ValueError(f"unit {entry.unit!r} is out of order; the next unit is {wanted!r}")
            size += entry.size
            sized.append(replace(entry, size=size))
        with self._whole_or_not(entries[0].unit):
            self._write_files(files)
            append_durably(self.folder / TABLE, text)
            append_durably(self.folder / PROGRESS, b"".join(entry.line() for entry in sized))
        self._entries += sized
        self.parts.forget_all_but(self.pending)

    @contextmanager
    def _whole_or_not(self, unit: str) -> Iterator[None]:
        """Take back what was appended to table and journal if the ``with`` block fails; the run is then closed."""
        table, journal = self.folder / TABLE, self.folder / PROGRESS
        if not self._open:
            raise ValueError(f"{self.folder}: this Run is closed; open the folder again with open_run")
        size, journal_size = table_size(self._entries, self._header), journal.stat().st_size
        self._open = False  # after a failed write the files are in an unknown state until the next opening reads them
        try:
            yield
        except BaseException as error:
            with suppress(OSError):  # the journal first: it must not list rows that are no longer in the table
                cut(journal, journal_size)
                cut(table, size)
            safe = f"{len(self._entries)} of {len(self.units)} units are on disk, and the same command resumes the run"
            if isinstance(error, OSError):
                raise RunError(f"{error.filename}: cannot write unit {unit!r}: {error.strerror}; {safe}") from error
            if isinstance(error, RunError):  # from writing a file
                raise RunError(f"{error}; {safe}") from error
            raise
        self._open = True

    def _write_files(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            write_inside(self.folder, name, content)


def _entry(unit: str, outcome: Outcome) -> Entry:
    """Return the journal's entry of a unit; its ``size`` is still the length of its rows in bytes."""
    if isinstance(outcome, Dropped):
        return Entry(unit, 0, 0, zlib.crc32(b""), outcome.reason)
    crc32, dropped_parts = zlib.crc32(outcome.csv), dict(outcome.dropped_parts)
    return Entry(unit, outcome.count, len(outcome.csv), crc32, None, dropped_parts, checksums(outcome.files))
