"""Import the names of a package on first use (PEP 562).

Every other package uses this, so that ``import interpret`` loads neither torch nor transformers. The names are listed
only in the stub ``__init__.pyi`` next to ``__init__.py``, which type checkers and editors read as well.
"""

import ast
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

__all__ = ["lazy_names"]

_HARMLESS_WARNINGS = (".*_register_pytree_node.*", "IProgress not found")
"""Warnings that the first import of transformers 4.34.0 causes: about a function that torch has renamed, and, in a
notebook, about missing progress bars. Users cannot fix them, so they are not shown."""


def lazy_names(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return the ``__getattr__``, ``__dir__`` and ``__all__`` of a package from its stub.

    Args:
        package: the package's ``__name__``.
        file: the package's ``__file__``; the stub is in the same folder.
    """
    homes = _homes(package, Path(file).with_suffix(".pyi"))

    def find(name: str) -> object:
        module = sys.modules[package]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        with warnings.catch_warnings():
            for message in _HARMLESS_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            home = importlib.import_module(homes[name])
        found = home if homes[name] == f"{package}.{name}" else getattr(home, name)
        setattr(module, name, found)  # later accesses do not call this function
        return found

    names = sorted(homes)
    return find, lambda: list(names), names


def _homes(package: str, stub: Path) -> dict[str, str]:
    """Return the module that each name of a stub comes from; ``from . import name`` is the module itself."""
    lines = ast.parse(stub.read_text(encoding="utf-8")).body
    imports = [line for line in lines if isinstance(line, ast.ImportFrom)]
    return {alias.name: f"{package}.{line.module or alias.name}" for line in imports for alias in line.names}
