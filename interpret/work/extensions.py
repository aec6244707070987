"""Extensions: files and packages of the user's own that register mediators, methods, probes, functions or families.

A file is named on the command line by ``--import``; a package registers through the entry-point group
``interpret.extensions``. What an extension registers may decide numbers, so runs record which were loaded. This module
imports no torch.
"""

import hashlib
import importlib.metadata
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from interpret.errors import InputError, InterpretError

GROUP = "interpret.extensions"


@dataclass(frozen=True)
class Extension:
    """One file or package that was loaded."""

    name: str
    """The file's name, or that of the entry point."""
    version: str
    """``sha256 ...`` of the file, or the package's version."""
    path: str | None
    """Of a file, as it was given; None for a package."""


_RUN: set[tuple[Path, str]] = set()
"""Path and sha256 of the files that were run in this process: what they register can be registered once only."""


def load_extensions(files: Sequence[Path | str] = (), *, packages: bool = True) -> list[Extension]:
    """Run Python files, and import all packages that extend this one.

    Args:
        files: each is run once in a process, however often it is given.
        packages: also load the entry points of the group ``interpret.extensions``.

    Returns:
        What was loaded, packages first; ``recorded`` tells it to a run.

    Raises:
        InputError: if a file does not exist, or loading fails; the message names file and line.
    """
    entries = importlib.metadata.entry_points(group=GROUP) if packages else ()
    return [*map(_load_package, entries), *(_load_file(Path(file)) for file in files)]


def recorded(extensions: Iterable[Extension]) -> dict[str, Any]:
    """Return what a run records of extensions: ``identity`` and ``circumstances``, both empty where there are none.

    >>> recorded([Extension("mine.py", "sha256 12ab", "lib/mine.py")])["identity"]
    {'imports': {'mine.py': 'sha256 12ab'}}
    """
    found = list(extensions)
    if not found:
        return {"identity": {}, "circumstances": {}}
    versions: dict[str, str] = {}
    for one in found:
        same = sum(name.partition(" ")[0] == one.name for name in versions)
        versions[f"{one.name} ({same + 1})" if same else one.name] = one.version
    paths = [one.path for one in found if one.path is not None]
    packages = {one.name: one.version for one in found if one.path is None}
    return {"identity": {"imports": versions}, "circumstances": {"imports": paths, "extensions": packages}}


def _load_package(entry: importlib.metadata.EntryPoint) -> Extension:
    try:
        entry.load()
    except Exception as error:
        raise InputError(f"extension {entry.name!r} ({entry.value}) cannot be loaded: {_told(error)}") from error
    return Extension(entry.name, entry.dist.version if entry.dist else "unknown", None)


def _load_file(path: Path) -> Extension:
    """Run a file as a module of its own."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a Python file, such as mine.py") from None
    sha256 = hashlib.sha256(source).hexdigest()
    key = (path.resolve(), sha256)
    if key not in _RUN:
        name = f"interpret_extension_{sha256[:16]}"
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{path}{_line(error, path)}: {_told(error)}") from error
        _RUN.add(key)
    return Extension(path.name, f"sha256 {sha256}", str(path))


def _told(error: Exception) -> str:
    """Word an error by its type and message; ours need no type."""
    said = str(error.msg if isinstance(error, SyntaxError) else error)
    return said if isinstance(error, InterpretError) else f"{type(error).__name__}: {said}".removesuffix(": ")


def _line(error: Exception, path: Path) -> str:
    """Say at which line of the file it failed: the last one on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
