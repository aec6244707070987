"""The cache of this package, and the hashes of large files that it keeps, so that a file is read for its hash once.

A kept hash is used as long as the file's path, size, times of modification and of change, device and inode are those
at which it was hashed; git decides by the same values whether a file differs from its index. The time of change (ctime)
is included because copies and archives set the time of modification back to that of the original.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from interpret.errors import RunError
from interpret.reading import parse_json
from interpret.storage.disk import replacing, waiting_lock
from interpret.storage.provenance import file_sha256

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
_ENTRIES = "hashes"
"""Folder of the kept hashes in the cache, one small JSON file each."""
_COARSEST_CLOCK_NS = 2_000_000_000
"""Step of the coarsest timestamps of a common file system (FAT), in ns."""


def cache_folder() -> Path:
    """Return the cache folder of this package; it may not exist yet.

    It is ``$INTERPRET_CACHE``, else ``$XDG_CACHE_HOME/llm-interpret``, else ``~/.cache/llm-interpret``.
    """
    named, base = os.environ.get("INTERPRET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named).expanduser().absolute()
    return (Path(base).absolute() if base else Path.home() / ".cache") / "llm-interpret"


def remembered_sha256(path: Path | str) -> str:
    """Return the sha256 of a file's bytes, in hex; the file is read only if it may have changed since the last time.

    Not noticed are changes that leave all values of the entry as they were: damage of the disk, writes past the file
    system, and writes while the clock was set back to the moment of the last change. ``file_sha256`` reads always.

    Raises:
        RunError: if the file cannot be read.
    """
    place = Path(path).resolve()
    entry = cache_folder() / _ENTRIES / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.json"
    state = _state(place)
    known = _read(entry)
    if {**known, **state} == known:
        return str(known["sha256"])
    with _one_at_a_time(entry):
        return _hashed(place, entry, state)


@contextmanager
def _one_at_a_time(entry: Path) -> Iterator[None]:
    """Let other processes wait that want the same hash; without a cache that can be written, each hashes the file."""
    with ExitStack() as stack:
        with suppress(OSError):
            locks = entry.parent.with_name(f"{entry.parent.name}-locks")
            locks.mkdir(parents=True, exist_ok=True)
            stack.enter_context(waiting_lock(locks / entry.stem, lambda: None))
        yield


def _hashed(place: Path, entry: Path, state: dict[str, Any]) -> str:
    """Return the hash that another process has kept meanwhile, or hash the file and keep it."""
    known = _read(entry)
    if {**known, **state} == known:
        return str(known["sha256"])
    started = time.time_ns()
    digest = file_sha256(place)
    # A write within the same step of the clock would leave the times as they are ("racy git").
    settled = max(state["modified_ns"], state["changed_ns"]) < started - _COARSEST_CLOCK_NS
    if settled and _state(place) == state:
        with suppress(OSError, RunError):  # without a cache that can be written, the file is read again next time
            entry.parent.mkdir(parents=True, exist_ok=True)
            with replacing(entry) as file:
                file.write(json.dumps({**state, "sha256": digest}, indent=2).encode() + b"\n")
    return digest


def weights_sha256(folder: Path | str) -> str:
    """Return one sha256 for the weights in a model folder: that of the sorted names and sha256s of its weight files.

    Raises:
        RunError: if there are no weights, or a file cannot be read.
    """
    for pattern in WEIGHTS:
        if files := sorted(Path(folder).glob(pattern)):
            lines = "".join(f"{remembered_sha256(file)}  {file.name}\n" for file in files)
            return hashlib.sha256(lines.encode()).hexdigest()
    raise RunError(f"{folder} contains no weights; looked for {', '.join(WEIGHTS)}")


def _state(place: Path) -> dict[str, Any]:
    """Return what changes whenever a file is written, replaced or moved."""
    try:
        found = place.stat()
    except OSError as error:
        raise RunError(f"{place}: cannot be read: {error.strerror}") from error
    return {
        "path": str(place),
        "bytes": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "changed_ns": found.st_ctime_ns,
        "device": found.st_dev,
        "inode": found.st_ino,
    }


def _read(entry: Path) -> dict[str, Any]:
    """Return a kept entry; empty if there is none, or it is damaged."""
    try:
        found = parse_json(entry.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("sha256"), str) and len(found["sha256"]) == 64
    return found if whole else {}
