"""Load extensions: user files and packages that register mediators, methods, probes, step functions or families.

The command-line option ``--import`` loads a file; packages are found through the entry-point group
``interpret.extensions``. Extensions may affect results, so runs record which ones were loaded. This module does not
import torch.
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
from interpret.reading import read_bytes

GROUP = "interpret.extensions"


@dataclass(frozen=True)
class Extension:
    """A loaded file or package."""

    name: str
    """Name of the file or of the entry point."""
    version: str
    """``sha256 ...`` of the file, or version of the package."""
    path: str | None
    """Path of the file as given; None for a package."""


_RUN: set[tuple[Path, str]] = set()
"""Path and sha256 of the files that this process has run; running one twice would register its names twice."""


def load_extensions(files: Sequence[Path | str] = (), *, packages: bool = True) -> list[Extension]:
    """Run extension files, and import the installed extension packages.

    Args:
        files: Python files; each is run at most once per process, however often it is given.
        packages: whether to load the entry points of the group ``interpret.extensions``.

    Returns:
        The loaded extensions, packages first. ``recorded`` converts them to entries of a run's manifest.

    Raises:
        InputError: if a file does not exist, or loading fails; the message gives the file and line.
    """
    entries = importlib.metadata.entry_points(group=GROUP) if packages else ()
    return [*map(_load_package, entries), *(_load_file(Path(file)) for file in files)]


def recorded(extensions: Iterable[Extension]) -> dict[str, Any]:
    """Return what a run records about extensions, as ``identity`` and ``circumstances``; both may be empty.

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
        raise InputError(f"extension {entry.name!r} ({entry.value}) cannot be loaded: {_message(error)}") from error
    return Extension(entry.name, entry.dist.version if entry.dist else "unknown", None)


def _load_file(path: Path) -> Extension:
    """Run a file as a new module."""
    try:
        source = read_bytes(path)
    except InputError as error:
        raise InputError(f"{error}; give a Python file, such as mine.py") from None
    sha256 = hashlib.sha256(source).hexdigest()
    key = (path.resolve(), sha256)
    if key not in _RUN:
        name = f"interpret_extension_{sha256[:16]}"
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses look up their module by name
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{path}{_line(error, path)}: {_message(error)}") from error
        _RUN.add(key)
    return Extension(path.name, f"sha256 {sha256}", str(path))


def _message(error: Exception) -> str:
    """Return the type and message of an error; for an ``InterpretError``, only the message."""
    text = str(error.msg if isinstance(error, SyntaxError) else error)
    return text if isinstance(error, InterpretError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _line(error: Exception, path: Path) -> str:
    """Return ``, line N``: the last line of the file in the traceback; empty if the file is not in the traceback."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
