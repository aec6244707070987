"""Run directories: a table of records that grows unit by unit, survives being killed, and says where it came from.

A unit is the smallest piece of work that is written whole, usually one prompt. Its rows go to the end of
``table.csv`` and are made durable, then a line of ``progress.jsonl`` says so; whatever the table holds beyond the
last such line is a unit cut off half-way, dropped at the next opening. ``manifest.json`` says what decided the
numbers (identity, compared whenever the run is continued) and how they came about (circumstances, only recorded).
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
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

if TYPE_CHECKING:
    import pandas

TABLE, MANIFEST, PROGRESS = "table.csv", "manifest.json", "progress.jsonl"
FORMAT = "llm-interpret run, format 1"
MEND = "give another --output folder, or delete this one"
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
"""The command of a run's identity -> the records of its table. Probes of the user's own bring theirs along."""

R = TypeVar("R")


@dataclass(frozen=True)
class _Entry:
    """One line of the journal: one unit that needs no more work."""

    unit: str
    rows: int
    """Rows the unit added to the table; 0 if dropped."""
    size: int
    """Bytes of the table after it."""
    crc32: int
    """Of the unit's own rows, so that a table edited by hand is noticed before more is added to it."""
    dropped: str | None
    """Why the unit has no rows, or None if it is kept."""


class Run:
    """An open run directory: what is done, what is left, and the only ways to add to it."""

    def __init__(self, folder: Path, record_type: type, units: Sequence[str], entries: list[_Entry]) -> None:
        """Take up the work after ``entries``; called by ``open_run`` alone."""
        self.folder = folder
        self.units = list(units)
        self._record_type = record_type
        self._header = csv_header(record_type)
        self._entries = entries
        self._open = True

    @property
    def finished(self) -> list[str]:
        """The units that need no more work, kept and dropped, in order."""
        return [entry.unit for entry in self._entries]

    @property
    def pending(self) -> list[str]:
        """The units still to do, in the order in which they have to be written."""
        return self.units[len(self._entries) :]

    @property
    def dropped(self) -> dict[str, str]:
        """The units without rows, and why."""
        return {entry.unit: entry.dropped for entry in self._entries if entry.dropped is not None}

    @property
    def counts(self) -> dict[str, int]:
        """Units ``in``, ``kept`` and ``dropped``, and ``rows`` in the table."""
        rows, dropped = sum(entry.rows for entry in self._entries), len(self.dropped)
        return {"in": len(self.units), "kept": len(self._entries) - dropped, "dropped": dropped, "rows": rows}

    def write(self, unit: str, records: Iterable[object]) -> None:
        """Append the rows of one whole unit, durably: once this returns they outlive a power cut.

        Args:
            unit: the first of ``pending``; a fixed order is what makes a continued table equal an unbroken one.
            records: all of the unit; a generator is run to its end before anything is written.

        Raises:
            RunError: if the disk does not take them; the units before are safe.
            ValueError: if it is not this unit's turn, or a text cannot be written as UTF-8.
            TypeError: if a record is not of the run's type.
        """
        records = list(records)
        for record in records:
            if type(record) is not self._record_type:
                raise TypeError(f"unit {unit!r}: this run holds {self._record_type.__name__}, not {record!r}")
        self._append(unit, to_csv(records), rows=len(records), dropped=None)

    def drop(self, unit: str, reason: str) -> None:
        """Record that a unit has no rows, and why; it is not tried again when the run is continued.

        Raises:
            RunError: if the disk does not take the note.
            ValueError: if it is not this unit's turn.
        """
        self._append(unit, b"", rows=0, dropped=reason)

    def _append(self, unit: str, text: bytes, *, rows: int, dropped: str | None) -> None:
        """Bring table and journal to hold one unit more, or leave both as they were."""
        done, table, journal = len(self._entries), self.folder / TABLE, self.folder / PROGRESS
        if not self._open:
            raise ValueError(f"{self.folder} is closed: nothing more can be written through this Run")
        turn = self.units[done] if done < len(self.units) else None
        if unit != turn:
            raise ValueError(f"unit {unit!r} is out of turn; next is {turn!r}")
        size, journal_size = _table_size(self._entries, self._header), journal.stat().st_size
        entry = _Entry(unit, rows, size + len(text), zlib.crc32(text), dropped)
        self._open = False  # what a disk holds after a failed write only the next opening knows, which reads it
        try:
            append_durably(table, text)
            append_durably(journal, json.dumps(asdict(entry)).encode() + b"\n")
        except BaseException as error:
            with suppress(OSError):  # the claim goes before what it claims
                cut(journal, journal_size)
                cut(table, size)
            if isinstance(error, OSError):
                raise RunError(
                    f"{error.filename}: cannot write unit {unit!r}: {error.strerror}; {done} of {len(self.units)} "
                    f"units are safe, and the same command continues from there"
                ) from error
            raise
        self._entries.append(entry)
        self._open = True


@dataclass(frozen=True)
class RunFolder:
    """A run folder to read: what every analysis returns, and ``read_run`` opens again."""

    folder: Path
    manifest: Mapping[str, Any]
    """What the run is (``identity``), how it came about (``circumstances``), ``status``, ``counts`` and ``dropped``."""
    record_type: type | None = None
    """The records of its table; None for a table that only its own program knows."""

    @property
    def dropped(self) -> dict[str, str]:
        """The units (prompts, facts) without rows, and why."""
        return dict(self.manifest["dropped"])

    @property
    def units(self) -> list[str]:
        """The units that are done, kept and dropped, in order."""
        return [entry.unit for entry in _read_journal(self.folder / PROGRESS)[0]]

    def records(self) -> list[Any]:
        """Read the rows of its table as records.

        Raises:
            RunError: as ``read_table`` does, or if nobody knows the records of this table.
        """
        return read_table(self.folder, self._known())

    def by_unit(self) -> Iterator[list[Any]]:
        """Read its records unit by unit, as ``read_units`` does."""
        return read_units(self.folder, self._known())

    def to_frame(self) -> "pandas.DataFrame":
        """Return its table: a row per record, with numbers as numbers and lists as lists.

        Raises:
            RunError: if the table cannot be read.
        """
        if self.record_type is None:
            return plain_frame(_whole_units(self.folder / TABLE, header=None))
        return record_frame(self.record_type, self.records())

    def _known(self) -> type:
        if self.record_type is None:
            raise RunError(
                f"{self.folder}: the records of {self.manifest['identity'].get('command')!r} are not known here; "
                "give read_run their type, or use to_frame()"
            )
        return self.record_type


def read_run(folder: Path | str, record_type: type | None = None) -> RunFolder:
    """Open a run folder to read it; it may still be growing.

    Args:
        folder: as a command or a run function wrote it.
        record_type: the records of its table; by default those of the command that its manifest names.

    Raises:
        RunError: if it is no run folder.

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
) -> Iterator[Run]:
    """Start a run directory, or continue it where it was left, and hold it for this process alone.

    Args:
        folder: made if it is not there.
        record_type: the record dataclass whose table this is.
        identity: everything that decides the numbers, as JSON values: model and weights, arguments, seed, a hash
            of the examples. A run is only ever continued with an equal one.
        circumstances: what is worth recording and may change between openings: versions, device, batch size.
        units: the names of all units, each once, in the order in which they will be written.

    Raises:
        RunError: if the folder is another run's, in use, damaged, or cannot be written.

    Example::

        with open_run("out", Interpretation, identity=..., circumstances=..., units=names) as run:
            for unit in run.pending:
                run.write(unit, interpret(unit))
    """
    folder, wanted = Path(folder), json.loads(_json(identity))
    if len(set(units)) < len(units):
        twice = next(unit for unit, count in Counter(units).items() if count > 1)
        raise RunError(f"the unit {twice!r} is listed twice; every unit of a run needs a name of its own")
    with ExitStack() as lock:
        with _os_errors_named(folder):
            _refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(locked(folder / PROGRESS))
            manifest = _load_manifest(folder / MANIFEST)
            entries, journal_size = _read_journal(folder / PROGRESS)
            if manifest is not None:
                _check_same(folder, manifest, wanted, entries, units)
            _check_table(folder / TABLE, csv_header(record_type), entries)
            # Everything above only looks; from here on the folder is known to be this run's, and is written.
            run = Run(folder, record_type, units, entries)
            manifest = _opened(manifest, wanted, dict(circumstances), run)
            _save(manifest, run)
            cut(folder / PROGRESS, journal_size)
            _restore_table(folder / TABLE, csv_header(record_type), entries)
        try:
            yield run
        except BaseException:
            with suppress(OSError):  # the counts can wait for the next opening; the caller's error cannot
                _save(manifest, run)
            raise
        finally:
            run._open = False
        with _os_errors_named(folder):
            _save(manifest, run)


def read_table(folder_or_csv: Path | str, record_type: type[R]) -> list[R]:
    """Read the records of a run, also while another process is writing it: whole units only.

    Args:
        folder_or_csv: a run directory, or a table anywhere.
        record_type: the record dataclass the table holds.

    Raises:
        RunError: if there is no such table, or it holds something else; the message names row and column.
    """
    path = Path(folder_or_csv)
    table = path / TABLE if path.is_dir() else path
    try:
        return from_csv(record_type, _whole_units(table, csv_header(record_type)))
    except ValueError as error:
        raise RunError(f"{table}: {error}") from None


def _whole_units(table: Path, header: bytes | None) -> bytes:
    """Return a table as far as its units are whole; with None for a header, any table's."""
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
    """Read the records of a run unit by unit, so that one unit's are held at a time; those without rows are left out.

    Args:
        folder: a run directory; it may still be growing.
        record_type: the record dataclass its table holds.

    Raises:
        RunError: as ``read_table``; it counts the rows of a unit from 1.
    """
    table, header = Path(folder) / TABLE, csv_header(record_type)
    try:
        entries, _ = _read_journal(table.with_name(PROGRESS))
        with table.open("rb") as file:
            if file.read(len(header)) != header:
                raise RunError(f"{table} is no table of {record_type.__name__}")
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
        RunError: if the folder has none.
    """
    manifest = _load_manifest(Path(folder) / MANIFEST)
    if manifest is None:
        raise RunError(f"{folder} is not a run folder: it has no {MANIFEST}")
    return manifest


@contextmanager
def _os_errors_named(folder: Path) -> Iterator[None]:
    """Give what the operating system refuses the words of a run."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or folder}: cannot open or close the run: {error.strerror}") from error


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose results this package did not write, or whose files are not all there."""
    there = [name for name in (MANIFEST, TABLE, PROGRESS) if (folder / name).exists()]
    if MANIFEST in there and PROGRESS not in there:
        raise RunError(f"{folder} has a {MANIFEST} but no {PROGRESS}, so it cannot be continued; {MEND}")
    if MANIFEST not in there and TABLE in there:
        raise RunError(f"{folder} has a {TABLE} but no {MANIFEST}, so nobody knows whose it is; {MEND}")


def _load_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest of ours, or None where there is none yet."""
    if not path.exists():
        return None
    with suppress(ValueError, KeyError, TypeError):
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest["format"] == FORMAT:
            return manifest
    raise RunError(f"{path} is not the manifest of a run, or of a newer version; {MEND}")


def _read_journal(path: Path) -> tuple[list[_Entry], int]:
    """Return the entries of whole lines, and where in the file they end: a kill may have torn the last line."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    entries = []
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            entries.append(_Entry(**json.loads(line)))
        except (ValueError, TypeError):
            raise RunError(f"{path}: line {number} was not written by a run; {MEND}") from None
    return entries, end


def _check_same(
    folder: Path,
    manifest: dict[str, Any],
    identity: dict[str, Any],
    entries: Sequence[_Entry],
    units: Sequence[str],
) -> None:
    """Refuse to continue another run: other arguments, other units, or a journal that forgot some."""
    there, here = dict(_leaves(manifest["identity"])), dict(_leaves(identity))
    differing = [
        f"\n  {key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise RunError(f"{folder} holds another run:{''.join(differing)}\n{MEND}")
    for number, entry in enumerate(entries):
        unit = units[number] if number < len(units) else None
        if entry.unit != unit:
            raise RunError(f"{folder} holds another run: its unit {number} is {entry.unit!r}, here {unit!r}; {MEND}")
    counts = manifest["counts"]
    if len(entries) < counts["kept"] + counts["dropped"]:
        raise RunError(f"{folder / PROGRESS} has lost lines since {MANIFEST} counted them; {MEND}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """List the values of nested mappings as dotted path and JSON text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _check_table(table: Path, header: bytes, entries: Sequence[_Entry]) -> None:
    """Refuse a table that is not, up to its last whole unit, what the journal says was written."""
    if not table.exists() and not entries:
        return
    with table.open("rb") as file:
        start = file.read(len(header))
        if start != header and (entries or not header.startswith(start)):
            raise RunError(f"{table}: its first line is not that of this version's table; {MEND}")
        for entry in entries:
            text = file.read(entry.size - file.tell())
            if zlib.crc32(text) != entry.crc32:
                raise RunError(f"{table} was changed after unit {entry.unit!r} was written to it; {MEND}")


def _restore_table(table: Path, header: bytes, entries: Sequence[_Entry]) -> None:
    """Bring the table to the header and the units of the journal, dropping one that was cut off half-way."""
    if entries or (table.exists() and table.stat().st_size >= len(header)):
        cut(table, _table_size(entries, header))
        return
    table.write_bytes(b"")
    append_durably(table, header)
    sync(table.parent)


def _table_size(entries: Sequence[_Entry], header: bytes) -> int:
    """Return the bytes of the table that are known to be whole."""
    return entries[-1].size if entries else len(header)


def _opened(
    manifest: dict[str, Any] | None, identity: dict[str, Any], circumstances: dict[str, Any], run: Run
) -> dict[str, Any]:
    """Start a manifest, or note in it that the run goes on, and in what circumstances."""
    now = _now()
    if manifest is None:
        manifest = {"format": FORMAT, "identity": identity, "circumstances": circumstances}
        return manifest | {"started": now, "finished": None, "continuations": []}
    if run.pending:
        again = {"started": now, "after_units": len(run.finished), "circumstances": circumstances}
        manifest["continuations"].append(again)
    return manifest


def _save(manifest: dict[str, Any], run: Run) -> None:
    """Bring a manifest up to the run's counts and put it in place whole, unless it is there already."""
    pending = bool(run.pending)
    manifest["finished"] = None if pending else manifest["finished"] or _now()
    manifest |= {"status": "running" if pending else "complete", "counts": run.counts, "dropped": run.dropped}
    path, text = run.folder / MANIFEST, _json(manifest)
    if path.exists() and path.read_bytes() == text:
        return
    temporary = run.folder / f".{MANIFEST}.tmp"
    temporary.write_bytes(b"")
    append_durably(temporary, text)
    temporary.replace(path)
    sync(run.folder)


def _json(value: Mapping[str, Any]) -> bytes:
    """Write strict JSON with sorted keys, as a person reads it; a lone surrogate becomes its JSON escape."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _now() -> str:
    """Return the time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
