"""Run folders: a table of records that grows unit by unit, can be resumed after a kill, and records its provenance.

A unit is the smallest piece of work that is written as a whole, usually one prompt. Its rows are appended to
``table.csv`` and flushed to disk; then a line for the unit is appended to the journal, ``progress.jsonl``. Rows after
the last unit of the journal belong to an interrupted unit; they are removed when the run is next opened. A unit that
takes long can store what it has done so far in ``Run.parts``.
``manifest.json`` records the identity of the run, which determines the numbers and is compared when the run is
resumed, and its circumstances, which are only recorded.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, TypeVar

from interpret.errors import InputError, RunError, brief, named, one_line
from interpret.reading import open_file, parse_json
from interpret.records import (
    HeadView,
    Interpretation,
    LensReading,
    LocationCell,
    LogitShare,
    NeuronEffect,
    TokenScore,
    TraceCell,
    csv_header,
    from_csv,
    to_csv,
)
from interpret.records.spreadsheets import for_spreadsheets
from interpret.storage.disk import append_durably, cut, locked, sync
from interpret.storage.frames import plain_frame, record_frame
from interpret.storage.parts import PARTS, StoredParts

if TYPE_CHECKING:
    import pandas

TABLE, MANIFEST, PROGRESS = "table.csv", "manifest.json", "progress.jsonl"
FORMAT = "llm-interpret run, format 1"
WHAT_TO_DO = "give another --output folder, or delete this one"
TABLES: Mapping[str, type] = MappingProxyType(
    {
        "selfie": Interpretation,
        "trace": TraceCell,
        "attribute": TokenScore,
        "locate": LocationCell,
        "probe lens": LensReading,
        "probe logits": LogitShare,
        "probe heads": HeadView,
        "probe neurons": NeuronEffect,
    }
)
"""Command in a run's identity -> record type of its table. The record types of user-defined probes are not listed."""

NEXT_COMMAND: Mapping[str, str] = MappingProxyType(
    {"selfie": "interpret report", "trace": "interpret figures", "locate": "interpret figures"}
    | {command: "interpret figures" for command in TABLES if command.startswith("probe ")}
)
"""Command of a run -> the command that shows its results."""
_MANIFEST_FIELDS: Mapping[str, type] = MappingProxyType(
    {"identity": dict, "circumstances": dict, "counts": dict, "dropped": dict, "continuations": list}
)
"""Keys that a manifest needs to have, with the types of their values."""
_MOST_SHOWN = 10
"""Maximum number of differing settings in a message."""

R = TypeVar("R")


@dataclass(frozen=True)
class _Entry:
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


class Run:
    """An open run folder: its finished and pending units, and the methods that write units."""

    def __init__(self, folder: Path, record_type: type, units: Sequence[str], entries: list[_Entry]) -> None:
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
        size, journal_size = _table_size(self._entries, self._header), journal.stat().st_size
        entry = _Entry(unit, rows, size + len(text), zlib.crc32(text), dropped)
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
    def units(self) -> list[str]:
        """The finished units, kept and dropped, in order, as the journal lists them."""
        path = self.folder / PROGRESS
        try:
            return [entry.unit for entry in _read_journal(path)[0]]
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
    return RunFolder(Path(folder), manifest, record_type or TABLES.get(_command(manifest)))


@contextmanager
def open_run(
    folder: Path | str,
    record_type: type,
    *,
    identity: Mapping[str, Any],
    circumstances: Mapping[str, Any],
    units: Sequence[str],
    others: Sequence[str] = (),
) -> Iterator[Run]:
    """Start or resume a run in a folder, which is locked for other processes inside the ``with`` block.

    Args:
        folder: the run folder; created if it does not exist.
        record_type: the dataclass of the table's rows.
        identity: everything that determines the numbers, as JSON values: model and weights, arguments, random seed, a
            hash of the examples. A run is resumed only with an equal identity.
        circumstances: what is recorded and may change between openings: versions, device, batch size.
        units: unique names of all units, in the order in which they will be written. When a run is resumed, units
            may be added at the end.
        others: names of further files and folders that the run writes into the folder.

    Yields:
        The open run.

    Raises:
        RunError: if the folder contains another run, is in use, is damaged, or cannot be written.

    Example::

        with open_run("out", Interpretation, identity=..., circumstances=..., units=names) as run:
            for unit in run.pending:
                run.write(unit, interpret(unit))
    """
    folder, wanted = Path(folder), json.loads(_json(identity))
    if "\0" in str(folder):
        raise RunError(f"{named(folder)} is not a valid path: it contains NUL")
    if len(set(units)) < len(units):
        twice = next(unit for unit, count in Counter(units).items() if count > 1)
        raise RunError(f"the unit {twice!r} is listed twice; the units of a run need unique names")
    with ExitStack() as lock:
        with _os_errors_named(folder):
            _refuse_foreign(folder, others)
            folder.mkdir(parents=True, exist_ok=True)
            writable = lock.enter_context(locked(folder / PROGRESS))
            manifest = _load_manifest(folder / MANIFEST)
            entries, journal_size = _read_journal(folder / PROGRESS)
            if manifest is not None:
                _check_same(folder, manifest, wanted, entries, units)
            _check_table(folder / TABLE, csv_header(record_type), entries)
            # Up to here, at most an empty folder and journal were created; now the folder is known to be this run's.
            run = Run(folder, record_type, units, entries)
            manifest = _opened(manifest, wanted, dict(circumstances), run)
            if writable:
                _save(manifest, run)
                cut(folder / PROGRESS, journal_size)
                _restore_table(folder / TABLE, csv_header(record_type), entries)
            elif run.pending:
                raise RunError(f"{folder} cannot be written, and its run is not finished; copy it to a writable disk")
        if not writable:  # a finished run, which is only read
            yield run
            return
        try:
            yield run
        except BaseException:
            with suppress(OSError):  # do not hide the caller's error; the next opening updates the counts
                _save(manifest, run)
            raise
        finally:
            run._open = False
        with _os_errors_named(folder):
            _save(manifest, run)


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


def _whole_units(table: Path, header: bytes | None) -> bytes:
    """Return the bytes of a table up to its last complete unit; ``header`` is None if the record type is unknown."""
    journal = table.with_name(PROGRESS)
    try:
        with open_file(table) as file:
            if table.name != TABLE or not journal.exists():
                return file.read()
            entries, _ = _read_journal(journal)
            if header is None and not entries:
                return file.readline()
            return file.read(_checked_size(table, entries, header or b""))
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        raise RunError(f"{named(table)}: cannot be read: {_reason(error)}") from error


def _checked_size(table: Path, entries: Sequence[_Entry], header: bytes) -> int:
    """Return the size of the header and the complete units; the table must not be shorter."""
    size = _table_size(entries, header)
    if entries and not len(header) <= entries[0].size <= size <= table.stat().st_size:
        raise RunError(f"{named(table)} does not have the size that {PROGRESS} gives; {WHAT_TO_DO}")
    return size


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def _check_kind(folder: Path, record_type: type) -> None:
    """Refuse the run of a command whose rows have another type, and name the command."""
    manifest = _load_manifest(folder / MANIFEST)
    command = "" if manifest is None else _command(manifest)
    known = TABLES.get(command)
    if known is None or record_type not in TABLES.values() or known is record_type:
        return
    use = f"; use '{NEXT_COMMAND[command]}'" if command in NEXT_COMMAND else ""
    wanted = next(name for name, of in TABLES.items() if of is record_type)
    raise RunError(f"{named(folder)} is a run of 'interpret {command}', not of 'interpret {wanted}'{use}")


def _command(manifest: Mapping[str, Any]) -> str:
    """Return the command of a run; empty if it has none, as a run that another program wrote."""
    command = manifest["identity"].get("command")
    return command if isinstance(command, str) else ""


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
        entries, _ = _read_journal(table.with_name(PROGRESS))
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


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Read the manifest of a run.

    Raises:
        RunError: if the folder has no manifest, or an invalid one.
    """
    manifest = _load_manifest(Path(folder) / MANIFEST)
    if manifest is None:
        raise RunError(f"{named(folder)} is not a run folder: it has no {MANIFEST}")
    return manifest


@contextmanager
def _os_errors_named(folder: Path) -> Iterator[None]:
    """Convert an ``OSError`` to a ``RunError`` that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or folder}: cannot open or close the run: {error.strerror}") from error


def _refuse_foreign(folder: Path, others: Sequence[str]) -> None:
    """Refuse a folder whose files were not written by a run: links, or other files of a run without its manifest."""
    own = (TABLE, PROGRESS, PARTS, *others)
    for name in (MANIFEST, *own):
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file() and name not in others):
            raise RunError(f"{path} is not a plain file, so a run would write to another place; {WHAT_TO_DO}")
    there = [name for name in own if (folder / name).exists()]
    if (folder / MANIFEST).exists():
        if PROGRESS not in there:
            raise RunError(f"{folder} has a {MANIFEST} but no {PROGRESS}, so the run cannot be resumed; {WHAT_TO_DO}")
        return
    # A run that was killed before it wrote its manifest leaves at most an empty journal.
    if PROGRESS in there and not (folder / PROGRESS).stat().st_size:
        there.remove(PROGRESS)
    if there:
        raise RunError(f"{folder} has a {there[0]} but no {MANIFEST}, so its run is unknown; {WHAT_TO_DO}")


def _load_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest and check the types of what it needs to have; None if the file does not exist yet."""
    try:
        manifest = parse_json(_read(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{named(path)}: cannot be read: {error.strerror}") from error
    except ValueError:  # not JSON, or a path with NUL
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RunError(f"{named(path)} is not the manifest of a run, or was written by a newer version; {WHAT_TO_DO}")
    for key, kind in _MANIFEST_FIELDS.items():
        if not isinstance(manifest.get(key), kind):
            raise RunError(f"{named(path)} is damaged: {key!r} is {brief(manifest.get(key))}; {WHAT_TO_DO}")
    counts, dropped = manifest["counts"], manifest["dropped"]
    if not all(type(counts.get(key)) is int for key in ("in", "kept", "dropped", "rows")):
        raise RunError(f"{named(path)} is damaged: 'counts' is {brief(counts)}; {WHAT_TO_DO}")
    if not all(isinstance(reason, str) for reason in dropped.values()):
        raise RunError(f"{named(path)} is damaged: 'dropped' is {brief(dropped)}; {WHAT_TO_DO}")
    if not isinstance(manifest.setdefault("finished", None), (str, NoneType)):
        raise RunError(f"{named(path)} is damaged: 'finished' is {brief(manifest['finished'])}; {WHAT_TO_DO}")
    return manifest


def _read(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def _read_journal(path: Path) -> tuple[list[_Entry], int]:
    """Return the entries of the complete lines and their size in bytes; a kill may have left a partial last line."""
    data = _read(path)
    end = data.rfind(b"\n") + 1
    entries: list[_Entry] = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
        try:
            entry = _Entry(**parse_json(line))
        except (ValueError, TypeError):
            entry = None
        if entry is None or not entry.follows(entries[-1].size if entries else 1):
            raise RunError(f"{path}: line {number} is not a valid entry; {WHAT_TO_DO}")
        entries.append(entry)
    return entries, end


def _check_same(
    folder: Path,
    manifest: dict[str, Any],
    identity: dict[str, Any],
    entries: Sequence[_Entry],
    units: Sequence[str],
) -> None:
    """Refuse to resume a run with another identity, other units, or a journal with fewer entries than the manifest."""
    commands = [one.get("command") for one in (manifest["identity"], identity)]
    if commands[0] != commands[1]:
        raise RunError(f"{folder} contains a run of {_named(commands[0])}, not of {_named(commands[1])}; {WHAT_TO_DO}")
    stored, given = dict(_leaves(manifest["identity"])), dict(_leaves(identity))
    differing = [
        f"\n  {one_line(key)}: {_shown(stored.get(key))} in the folder, {_shown(given.get(key))} now"
        for key in sorted(stored.keys() | given.keys())
        if stored.get(key) != given.get(key)
    ]
    if differing:
        left = len(differing) - _MOST_SHOWN
        more = f"\n  and {left} more" if left > 0 else ""
        raise RunError(f"{folder} contains another run:{''.join(differing[:_MOST_SHOWN])}{more}\n{WHAT_TO_DO}")
    for number, entry in enumerate(entries):
        unit = units[number] if number < len(units) else None
        if entry.unit != unit:
            units_differ = f"unit {number} is {entry.unit!r} in the folder, {unit!r} now"
            raise RunError(f"{folder} contains another run: {units_differ}; {WHAT_TO_DO}")
    counts = manifest["counts"]
    if len(entries) < counts["kept"] + counts["dropped"]:
        raise RunError(f"{folder / PROGRESS} has fewer lines than {MANIFEST} counts units; {WHAT_TO_DO}")


def _shown(text: str | None) -> str:
    """Return the JSON text of a setting for a message."""
    return "not set" if text is None else one_line(text)


def _named(command: object) -> str:
    """Return the command of a run, in words."""
    return f"'interpret {one_line(command)}'" if isinstance(command, str) else "no command"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested mappings as (dotted path, JSON text)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _check_table(table: Path, header: bytes, entries: Sequence[_Entry]) -> None:
    """Refuse a table that differs from the journal before the end of its last complete unit."""
    if not table.exists() and not entries:
        return
    with open_file(table) as file:
        start = file.read(len(header))
        if start != header and (entries or not header.startswith(start)):
            raise RunError(f"{table}: its header is not that of this version; {WHAT_TO_DO}")
        size = table.stat().st_size
        for entry in entries:
            length = entry.size - file.tell()
            if not 0 <= length <= size or zlib.crc32(file.read(length)) != entry.crc32:
                raise RunError(f"{table} was changed after unit {entry.unit!r} was written; {WHAT_TO_DO}")


def _restore_table(table: Path, header: bytes, entries: Sequence[_Entry]) -> None:
    """Truncate the table to the units of the journal, or create it with its header."""
    if entries or (table.exists() and table.stat().st_size >= len(header)):
        cut(table, _table_size(entries, header))
        return
    table.write_bytes(b"")
    append_durably(table, header)
    sync(table.parent)


def _table_size(entries: Sequence[_Entry], header: bytes) -> int:
    """Return the size in bytes of the header and the complete units."""
    return entries[-1].size if entries else len(header)


def _opened(
    manifest: dict[str, Any] | None, identity: dict[str, Any], circumstances: dict[str, Any], run: Run
) -> dict[str, Any]:
    """Return a new manifest, or the given one with an entry for the resumed run and its circumstances."""
    now = _now()
    if manifest is None:
        manifest = {"format": FORMAT, "identity": identity, "circumstances": circumstances}
        return manifest | {"started": now, "finished": None, "continuations": []}
    if run.pending:
        resumed = {"started": now, "after_units": len(run.finished), "circumstances": circumstances}
        manifest["continuations"].append(resumed)
    return manifest


def _save(manifest: dict[str, Any], run: Run) -> None:
    """Update the status and counts of a manifest, and replace the file atomically if its contents change."""
    pending = bool(run.pending)
    manifest["finished"] = None if pending else manifest["finished"] or _now()
    manifest |= {"status": "running" if pending else "complete", "counts": run.counts, "dropped": run.dropped}
    path, text = run.folder / MANIFEST, _json(manifest)
    if path.exists() and path.read_bytes() == text:
        return
    temporary = run.folder / f".{MANIFEST}.tmp"
    temporary.unlink(missing_ok=True)  # left by a killed process, or a link to a foreign file
    temporary.write_bytes(b"")
    append_durably(temporary, text)
    temporary.replace(path)
    sync(run.folder)


def _json(value: Mapping[str, Any]) -> bytes:
    """Return indented strict JSON with sorted keys, as bytes; a lone surrogate becomes its JSON escape."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _now() -> str:
    """Return the current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
