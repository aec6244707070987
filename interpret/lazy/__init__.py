"""Names of a package that are imported when they are first used (PEP 562).

Every other package opens this way, so that ``import interpret`` loads neither torch nor transformers. The names stand
once, in the ``__init__.pyi`` beside the ``__init__.py``, where type checkers and editors read them too.
"""

import sys
import warnings
from collections.abc import Callable

import lazy_loader

__all__ = ["lazy_names"]

_HARMLESS_WARNINGS = (".*_register_pytree_node.*", "IProgress not found")
"""transformers 4.34.0, when it is first imported, uses a name that torch has since renamed, and in a notebook asks for
progress bars; nothing a user could mend."""


def lazy_names(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return the ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names its stub lists.

    Args:
        package: its ``__name__``.
        file: its ``__file__``; the stub lies beside it.
    """
    find, names_of, names = lazy_loader.attach_stub(package, file)

    def find_quietly(name: str) -> object:
        module = sys.modules[package]
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        with warnings.catch_warnings():
            for message in _HARMLESS_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            found = find(name)
        setattr(module, name, found)  # the next access does not come here
        return found

    return find_quietly, names_of, names
