"""The manifest of a run, ``manifest.json``: its identity, circumstances, counts and dropped units."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any

from interpret.errors import RunError, brief, named
from interpret.reading import open_file, parse_json
from interpret.storage.disk import append_durably, sync
from interpret.storage.layout import MANIFEST, WHAT_TO_DO
from interpret.storage.run import Run

FORMAT = "llm-interpret run, format 1"
_MANIFEST_FIELDS: Mapping[str, type] = MappingProxyType(
    {"identity": dict, "circumstances": dict, "counts": dict, "dropped": dict, "continuations": list}
)
"""Keys that a manifest needs to have, with the types of their values."""


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Read the manifest of a run.

    Raises:
        RunError: if the folder has no manifest, or an invalid one.
    """
    manifest = load_manifest(Path(folder) / MANIFEST)
    if manifest is None:
        raise RunError(f"{named(folder)} is not a run folder: it has no {MANIFEST}")
    return manifest


def load_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest and check the types of what it needs to have; None if the file does not exist yet."""
    try:
        with open_file(path) as file:
            manifest = parse_json(file.read())
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
    parts = manifest.setdefault("dropped_parts", {})
    if not all(type(counts.get(key)) is int for key in ("in", "kept", "dropped", "rows")):
        raise RunError(f"{named(path)} is damaged: 'counts' is {brief(counts)}; {WHAT_TO_DO}")
    if not all(isinstance(reason, str) for reason in dropped.values()):
        raise RunError(f"{named(path)} is damaged: 'dropped' is {brief(dropped)}; {WHAT_TO_DO}")
    if not isinstance(parts, dict) or not all(isinstance(of_unit, dict) for of_unit in parts.values()):
        raise RunError(f"{named(path)} is damaged: 'dropped_parts' is {brief(parts)}; {WHAT_TO_DO}")
    if not isinstance(manifest.setdefault("finished", None), (str, NoneType)):
        raise RunError(f"{named(path)} is damaged: 'finished' is {brief(manifest['finished'])}; {WHAT_TO_DO}")
    return manifest


def opened(
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


def save(manifest: dict[str, Any], run: Run) -> None:
    """Update the status and counts of a manifest, and replace the file atomically if its contents change."""
    pending = bool(run.pending)
    manifest["finished"] = None if pending else manifest["finished"] or _now()
    manifest |= {"status": "incomplete" if pending else "complete", "counts": run.counts, "dropped": run.dropped}
    manifest["dropped_parts"] = run.dropped_parts
    path, text = run.folder / MANIFEST, to_json(manifest)
    if path.exists() and path.read_bytes() == text:
        return
    temporary = run.folder / f".{MANIFEST}.tmp"
    temporary.unlink(missing_ok=True)  # left by a killed process, or a link to a foreign file
    temporary.write_bytes(b"")
    append_durably(temporary, text)
    temporary.replace(path)
    sync(run.folder)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return indented strict JSON with sorted keys, as bytes; a lone surrogate becomes its JSON escape."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _now() -> str:
    """Return the current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_of(manifest: Mapping[str, Any]) -> str:
    """Return the command of a run; empty if it has none, as a run that another program wrote."""
    command = manifest["identity"].get("command")
    return command if isinstance(command, str) else ""
