"""Start or resume a run in a folder: a table that grows unit by unit, can be resumed after a kill, and has a manifest.

A unit is the smallest piece of work that is written as a whole, usually one prompt. Its rows are appended to
``table.csv`` and flushed to disk; then a line for the unit is appended to the journal, ``progress.jsonl``. Rows after
the last unit of the journal belong to an interrupted unit; they are removed when the run is next opened. A unit that
takes long can store what it has done so far in ``Run.parts``.
``manifest.json`` records the identity of the run, which determines the numbers and is compared when the run is
resumed, and its circumstances, which are only recorded.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from interpret.errors import RunError, named
from interpret.records import csv_header
from interpret.storage.checks import check_same, check_table, refuse_foreign
from interpret.storage.disk import append_durably, cut, locked, sync
from interpret.storage.journal import Entry, read_journal, table_size
from interpret.storage.layout import MANIFEST, PROGRESS, TABLE
from interpret.storage.manifest import load_manifest, opened, save, to_json
from interpret.storage.run import Run


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
    folder, wanted = Path(folder), json.loads(to_json(identity))
    if "\0" in str(folder):
        raise RunError(f"{named(folder)} is not a valid path: it contains NUL")
    if len(set(units)) < len(units):
        twice = next(unit for unit, count in Counter(units).items() if count > 1)
        raise RunError(f"the unit {twice!r} is listed twice; the units of a run need unique names")
    with ExitStack() as lock:
        with _os_errors_named(folder):
            refuse_foreign(folder, others)
            folder.mkdir(parents=True, exist_ok=True)
            writable = lock.enter_context(locked(folder / PROGRESS))
            manifest = load_manifest(folder / MANIFEST)
            entries, journal_size = read_journal(folder / PROGRESS)
            if manifest is not None:
                check_same(folder, manifest, wanted, entries, units)
            check_table(folder / TABLE, csv_header(record_type), entries)
            # Up to here, at most an empty folder and journal were created; now the folder is known to be this run's.
            run = Run(folder, record_type, units, entries)
            manifest = opened(manifest, wanted, dict(circumstances), run)
            if writable:
                save(manifest, run)
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
                save(manifest, run)
            raise
        finally:
            run._open = False
        with _os_errors_named(folder):
            save(manifest, run)


@contextmanager
def _os_errors_named(folder: Path) -> Iterator[None]:
    """Convert an ``OSError`` to a ``RunError`` that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or folder}: cannot open or close the run: {error.strerror}") from error


def _restore_table(table: Path, header: bytes, entries: Sequence[Entry]) -> None:
    """Truncate the table to the units of the journal, or create it with its header."""
    if entries or (table.exists() and table.stat().st_size >= len(header)):
        cut(table, table_size(entries, header))
        return
    table.write_bytes(b"")
    append_durably(table, header)
    sync(table.parent)
