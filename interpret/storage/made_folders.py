"""Folders in the cache that are made from something else: complete or absent, and made again once they are damaged.

A manifest in the folder holds what it was made from, and size and sha256 of each of its files.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from interpret.errors import RunError
from interpret.reading import parse_json
from interpret.storage.cache import remembered_sha256
from interpret.storage.disk import sync
from interpret.storage.provenance import file_sha256

MANIFEST = "manifest.json"


def defect(folder: Path, made_from: Mapping[str, object]) -> str | None:
    """Return what is wrong with a folder, or None if all its files are those that were written.

    A file whose size has changed is noticed without reading it. Its bytes are read again only if it may have been
    written to since it was last read, see ``remembered_sha256``.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
        if manifest["made_from"] != made_from:
            return "it was made by another version of this package"
        for name, known in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != known["bytes"] or remembered_sha256(path) != known["sha256"]:
                return f"{name} has changed"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read"
    except RunError as error:
        return str(error)
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{MANIFEST} has changed"
    return None


def make_folder(folder: Path, made_from: Mapping[str, object], write: Callable[[Path], None]) -> None:
    """Make a folder, or make it again, so that it is never visible incomplete; only one process may do so at a time.

    Args:
        folder: its parent folder has to exist.
        made_from: JSON values; ``defect`` compares them.
        write: writes the files into the empty folder that it is called with; its errors are raised.

    Raises:
        OSError: if the folder cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)  # left by a process that was killed
    partial.mkdir()
    try:
        write(partial)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(partial.iterdir())
        }
        write_json(partial / MANIFEST, {"made_from": made_from, "files": files})
        for path in [*partial.iterdir(), partial]:
            sync(path)
        remove(folder)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException:  # also Ctrl-C: leave no half-made gigabytes behind
        remove(partial)
        raise


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; a link is removed, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
