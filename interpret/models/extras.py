"""Packages that not every user needs: extras of this package, imported where they are used."""

from importlib.util import find_spec

from interpret.anatomy import can_be_patched
from interpret.errors import ModelError


def is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def require(module: str, what: str, extra: str | None = None) -> None:
    """Check that the module of an extra is installed.

    Args:
        module: name of the module.
        what: what needs it, the start of the message.
        extra: name of the extra; None if it is that of the module, see ``missing``.

    Raises:
        ModelError: if it is not; the message gives the line that installs it.
    """
    if not is_installed(module):
        raise ModelError(missing(module, what, extra))


def missing(module: str, what: str, extra: str | None = None) -> str:
    """Return the message that something needs an extra, with the line that installs it.

    Beside transformers 4.34.0, an extra of the module's name is replaced by ``patch``, which holds the releases that
    work with it.
    """
    extra = extra or ("patch" if can_be_patched() else module)
    return f'{what} needs {module}: pip install "llm-interpret[{extra}]"'
