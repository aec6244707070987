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

from interpret.errors import RunError
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

_KIND_NAMES = {dict: "an object", list: "a list"}
READERS: Mapping[str, str] = MappingProxyType(
    {"selfie": "'interpret report'", "trace": "'interpret figures'", "locate": "'interpret figures'"}
)
"""Command in a run's identity -> command that shows such runs."""
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

    def follows(self, before: "_Entry | None") -> bool:
        """Return whether this can be the entry after another: its types are right, and the table does not shrink."""
        return (
            isinstance(self.unit, str)
            and isinstance(self.dropped, (str, NoneType))
            and all(map(_is_size, (self.rows, self.size, self.crc32)))
            and (before is None or self.size >= before.size)
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
        return [entry.unit for entry in _read_journal(self.folder / PROGRESS)[0]]

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
            return plain_frame(_whole_units(self.folder / TABLE, header=None))
        return record_frame(self.record_type, self.records())

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
    return RunFolder(Path(folder), manifest, record_type or TABLES.get(manifest["identity"].get("command", "")))


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
    path = Path(folder_or_csv)
    table = path / TABLE if path.is_dir() else path
    if table.name == TABLE:
        _check_kind(table.parent, record_type)
    try:
        return from_csv(record_type, _whole_units(table, csv_header(record_type)))
    except ValueError as error:
        raise RunError(f"{table}: {error}") from None


def _whole_units(table: Path, header: bytes | None) -> bytes:
    """Return the bytes of a table up to its last complete unit; ``header`` is None if the record type is unknown."""
    journal = table.with_name(PROGRESS)
    try:
        with table.open("rb") as file:
            if table.name != TABLE or not journal.exists():
                return file.read()
            entries, _ = _read_journal(journal)
            if header is None and not entries:
                return file.readline()
            return file.read(_table_size(entries, header or b""))
    except OSError as error:
        raise RunError(f"{table}: cannot be read: {error.strerror}") from error


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
        with table.open("rb") as file:
            if file.read(len(header)) != header:
                raise RunError(f"{table} is not a table of {record_type.__name__} records")
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
        raise RunError(f"{folder} is not a run folder: it has no {MANIFEST}")
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
    """Read a manifest; None if the file does not exist yet."""
    if not path.exists():
        return None
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest["format"] == FORMAT:
            return _checked_manifest(path, manifest)
    raise RunError(f"{path} is not the manifest of a run, or was written by a newer version; {WHAT_TO_DO}")


def _checked_manifest(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest if it has all entries that are used."""
    kinds = {"identity": dict, "circumstances": dict, "counts": dict, "dropped": dict, "continuations": list}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise RunError(f"{path} was changed: {key!r} is missing or not {_KIND_NAMES[kind]}; {WHAT_TO_DO}")
    for key in ("in", "kept", "dropped", "rows"):
        if not _is_size(manifest["counts"].get(key)):
            raise RunError(f"{path} was changed: 'counts' has no number {key!r}; {WHAT_TO_DO}")
    if not isinstance(manifest.setdefault("finished", None), (str, NoneType)):
        raise RunError(f"{path} was changed: 'finished' is not a time; {WHAT_TO_DO}")
    return manifest


def _is_size(value: object) -> bool:
    """Return whether a JSON value is a count or a size in bytes."""
    return type(value) is int and 0 <= value < 2**63


def _read_journal(path: Path) -> tuple[list[_Entry], int]:
    """Return the entries of the complete lines and their size in bytes; a kill may have left a partial last line."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    entries: list[_Entry] = []
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            entry = _Entry(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            entry = None
        if entry is None or not entry.follows(entries[-1] if entries else None):
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
        f"\n  {key}: {stored.get(key, 'not set')} in the folder, {given.get(key, 'not set')} now"
        for key in sorted(stored.keys() | given.keys())
        if stored.get(key) != given.get(key)
    ]
    if differing:
        raise RunError(f"{folder} contains another run:{''.join(differing)}\n{WHAT_TO_DO}")
    for number, entry in enumerate(entries):
        unit = units[number] if number < len(units) else None
        if entry.unit != unit:
            units_differ = f"unit {number} is {entry.unit!r} in the folder, {unit!r} now"
            raise RunError(f"{folder} contains another run: {units_differ}; {WHAT_TO_DO}")
    counts = manifest["counts"]
    if len(entries) < counts["kept"] + counts["dropped"]:
        raise RunError(f"{folder / PROGRESS} has fewer lines than {MANIFEST} counts units; {WHAT_TO_DO}")


def _named(command: object) -> str:
    """Return the command of a run, in words."""
    return f"'interpret {command}'" if isinstance(command, str) else "no command"


def _check_kind(folder: Path, record_type: type) -> None:
    """Refuse to read a run of one command as a run of another; say what reads it."""
    try:
        command = str(read_manifest(folder)["identity"].get("command"))
    except RunError:
        return  # reading the table says what is wrong
    if TABLES.get(command, record_type) is not record_type:
        wanted = next((f", not of {_named(name)}" for name, known in TABLES.items() if known is record_type), "")
        reader = READERS.get(command, "interpret.read_run in Python")
        raise RunError(f"{folder} is a run of {_named(command)}{wanted}; use {reader}")


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
    with table.open("rb") as file:
        start = file.read(len(header))
        if start != header and (entries or not header.startswith(start)):
            raise RunError(f"{table}: its header is not that of this version; {WHAT_TO_DO}")
        if entries and entries[0].size < len(header):
            raise RunError(f"{table.with_name(PROGRESS)}: line 1 is not a valid entry; {WHAT_TO_DO}")
        for entry in entries:
            text = file.read(min(entry.size, table.stat().st_size) - file.tell())
            if zlib.crc32(text) != entry.crc32 or file.tell() != entry.size:
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
