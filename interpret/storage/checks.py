"""What is in a folder before a run is resumed in it: refused unless it is the same run, and undamaged."""

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from interpret.errors import RunError, one_line
from interpret.reading import open_file
from interpret.storage.journal import Entry
from interpret.storage.layout import MANIFEST, PROGRESS, TABLE, WHAT_TO_DO
from interpret.storage.parts import PARTS

_MOST_SHOWN = 10
"""Maximum number of differing settings in a message."""


def refuse_foreign(folder: Path, others: Sequence[str]) -> None:
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


def check_same(
    folder: Path,
    manifest: dict[str, Any],
    identity: dict[str, Any],
    entries: Sequence[Entry],
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


def check_table(table: Path, header: bytes, entries: Sequence[Entry]) -> None:
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
