"""Read run folders: tables, manifests and units, also of runs that are still in progress."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from interpret.errors import InputError, RunError, brief, named, one_line
from interpret.reading import open_file
from interpret.records import csv_header, from_csv
from interpret.records.spreadsheets import for_spreadsheets
from interpret.storage.frames import plain_frame, record_frame
from interpret.storage.journal import Entry, is_intact, read_journal, table_size
from interpret.storage.layout import MANIFEST, NEXT_COMMAND, PROGRESS, TABLE, TABLES, WHAT_TO_DO
from interpret.storage.manifest import command_of, load_manifest, read_manifest

if TYPE_CHECKING:
    import pandas

R = TypeVar("R")


@dataclass(frozen=True)
class RunFolder:
    """A run folder, for reading; every analysis returns one, and ``read_run`` opens one."""

    folder: Path
    manifest: Mapping[str, Any]
    """Contents of ``manifest.json``: ``identity``, ``circumstances``, ``status``, ``counts``, ``dropped`` and times."""
    record_type: type | None = None
    """Record type of the table; None if it is unknown, as for user-defined probes."""

    @property
    def dropped(self) -> dict[str, str]:
        """Dropped unit (prompt, fact) -> reason."""
        return dict(self.manifest["dropped"])

    @property
    def dropped_parts(self) -> dict[str, dict[str, str]]:
        """Kept unit that lacks some parts -> part (interpretation, pair) -> reason."""
        return dict(self.manifest["dropped_parts"])

    @property
    def units(self) -> list[str]:
        """The finished units, kept and dropped, in order, as the journal lists them."""
        return [entry.unit for entry in self._entries()]

    @property
    def files(self) -> dict[str, int]:
        """Name of each file that units have besides their rows -> its checksum (CRC-32)."""
        return {name: crc32 for entry in self._entries() for name, crc32 in entry.files.items()}

    def intact_file(self, name: str, crc32: int) -> Path:
        """Return the path of one of ``files``.

        Raises:
            RunError: if it is missing, or differs from what the run wrote.
        """
        path = self.folder / name
        if not is_intact(path, crc32):
            raise RunError(f"{path} is missing or was changed; the command of the run makes it again")
        return path

    def _entries(self) -> list[Entry]:
        path = self.folder / PROGRESS
        try:
            return read_journal(path)[0]
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from error

    def records(self) -> list[Any]:
        """Read the rows of the table as records.

        Raises:
            RunError: as ``read_table`` raises, or if the record type is unknown.
        """
        return read_table(self.folder, self._known())

    def by_unit(self) -> Iterator[list[Any]]:
        """Iterate over the records unit by unit, see ``read_units``."""
        return read_units(self.folder, self._known())

    def to_frame(self) -> "pandas.DataFrame":
        """Return the table as a DataFrame, one row per record, with numbers and lists converted from text.

        Raises:
            RunError: if the table cannot be read.
        """
        if self.record_type is None:
            table = self.folder / TABLE
            try:
                return plain_frame(_whole_units(table, header=None))
            except ValueError as error:
                raise RunError(f"{named(table)}: {error}") from None
        return record_frame(self.record_type, self.records())

    def to_spreadsheet(self) -> bytes:
        """Return the table as CSV in which no cell is a formula for a spreadsheet program, see ``for_spreadsheets``.

        Raises:
            RunError: if the table cannot be read.
        """
        table = self.folder / TABLE
        try:
            return for_spreadsheets(_whole_units(table, header=None))
        except ValueError as error:
            raise RunError(f"{named(table)}: {error}") from None

    def _known(self) -> type:
        if self.record_type is None:
            raise RunError(
                f"{self.folder}: the record type of {self.manifest['identity'].get('command')!r} is unknown; "
                "give it to read_run as record_type, or use to_frame()"
            )
        return self.record_type


def read_run(folder: Path | str, record_type: type | None = None) -> RunFolder:
    """Open a run folder for reading; the run may still be in progress.

    Args:
        folder: a run folder, written by a command or a run function.
        record_type: record type of the table; by default that of the command in the manifest.

    Raises:
        RunError: if the folder is not a run folder.

    Example:
        >>> read_run("runs/trace").to_frame()  # doctest: +SKIP
    """
    manifest = read_manifest(folder)
    return RunFolder(Path(folder), manifest, record_type or TABLES.get(command_of(manifest)))


def read_table(folder_or_csv: Path | str, record_type: type[R]) -> list[R]:
    """Read the records of the complete units of a run; another process may be writing the run meanwhile.

    Args:
        folder_or_csv: a run folder, or any CSV file with such a table.
        record_type: the dataclass of the table's rows.

    Raises:
        RunError: if the table does not exist or has other rows; the message names row and column.
    """
    table = Path(folder_or_csv)
    with suppress(OSError):  # an impossible path, which is an error when it is read
        if table.is_dir():
            table = table / TABLE
        if table.name == TABLE and table.with_name(PROGRESS).is_file():
            _check_kind(table.parent, record_type)
    try:
        return from_csv(record_type, _whole_units(table, csv_header(record_type)))
    except ValueError as error:
        raise RunError(f"{named(table)}: {error}") from None


def read_rows(folder: Path | str, record_type: type[R]) -> list[R]:
    """Read the records of a run that has some, see ``read_table``.

    Raises:
        InputError: if the run has no rows; the message says whether it is unfinished or all units were dropped.
        RunError: as ``read_table`` raises.
    """
    rows = read_table(folder, record_type)
    if rows:
        return rows
    manifest = read_manifest(folder)
    dropped, left = manifest["dropped"], manifest.get("status") != "complete"
    if left or not dropped:
        raise InputError(f"{named(folder)} has no rows: the run has not finished any unit yet; resume it first")
    unit, reason = next(iter(dropped.items()))
    raise InputError(
        f"{named(folder)} has no rows: all units of the run were dropped ({len(dropped)}); the first is "
        f"{brief(unit)}: {one_line(reason)}"
    )


def read_units(folder: Path | str, record_type: type[R]) -> Iterator[list[R]]:
    """Read the records of a run unit by unit, with only one unit in memory; units without rows are skipped.

    Args:
        folder: a run folder; the run may still be in progress.
        record_type: the dataclass of the table's rows.

    Yields:
        The records of one unit.

    Raises:
        RunError: as ``read_table`` raises; rows are numbered from 1 within their unit.
    """
    table, header = Path(folder) / TABLE, csv_header(record_type)
    _check_kind(Path(folder), record_type)
    try:
        entries, _ = read_journal(table.with_name(PROGRESS))
        with open_file(table) as file:
            if file.read(len(header)) != header:
                _check_kind(table.parent, record_type)
                raise RunError(f"{table} is not a table of {record_type.__name__} records")
            _checked_size(table, entries, header)
            for entry in entries:
                text = file.read(entry.size - file.tell())
                if entry.rows:
                    yield from_csv(record_type, header + text)
    except OSError as error:
        raise RunError(f"{table}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{table}: {error}") from None


def _whole_units(table: Path, header: bytes | None) -> bytes:
    """Return the bytes of a table up to its last complete unit; ``header`` is None if the record type is unknown."""
    journal = table.with_name(PROGRESS)
    try:
        with open_file(table) as file:
            if table.name != TABLE or not journal.exists():
                return file.read()
            entries, _ = read_journal(journal)
            if header is None and not entries:
                return file.readline()
            return file.read(_checked_size(table, entries, header or b""))
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        raise RunError(f"{named(table)}: cannot be read: {_reason(error)}") from error


def _checked_size(table: Path, entries: Sequence[Entry], header: bytes) -> int:
    """Return the size of the header and the complete units; the table must not be shorter."""
    size = table_size(entries, header)
    if entries and not len(header) <= entries[0].size <= size <= table.stat().st_size:
        raise RunError(f"{named(table)} does not have the size that {PROGRESS} gives; {WHAT_TO_DO}")
    return size


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def _check_kind(folder: Path, record_type: type) -> None:
    """Refuse the run of a command whose rows have another type, and name the command."""
    manifest = load_manifest(folder / MANIFEST)
    command = "" if manifest is None else command_of(manifest)
    known = TABLES.get(command)
    if known is None or record_type not in TABLES.values() or known is record_type:
        return
    use = f"; use '{NEXT_COMMAND[command]}'" if command in NEXT_COMMAND else ""
    wanted = next(name for name, of in TABLES.items() if of is record_type)
    raise RunError(f"{named(folder)} is a run of 'interpret {command}', not of 'interpret {wanted}'{use}")
