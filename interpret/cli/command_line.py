"""Run a command line: first load extensions, then build the commands, so that help lists what extensions register."""

import gc
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from interpret.cli.console import NOT_DONE, say
from interpret.errors import InterpretError
from interpret.work.extensions import load_extensions

IMPORT = "--import"
_NEW_OBJECTS = 20_000
"""Number of new objects after which Python looks for garbage, instead of 700: imports make half a million of them, none
of them garbage, and looking takes a sixth of the time of the imports."""


def main(argv: Sequence[str] | None = None, *, prog_name: str = "interpret") -> None:
    """Run a command line and exit with its code; errors that a user can fix are printed without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # on Windows, a file takes only the characters of one language
        sys.stdout.reconfigure(errors="backslashreplace")
    with _rare_collections(), warnings.catch_warnings():
        # transformers 4.34.0 uses names that torch has renamed since; users cannot fix that.
        warnings.filterwarnings("ignore", message=".*_register_pytree_node.*")
        warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
        warnings.showwarning = _show_warning
        _run(list(sys.argv[1:] if argv is None else argv), prog_name)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for garbage less often inside the block; afterwards also at what was frozen in it."""
    before = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    """Print a warning as one line, without the place in the code that a user cannot change."""
    say(f"Warning: {message}")


def _run(words: list[str], prog_name: str) -> None:
    try:
        load_extensions(imported(words))
    except InterpretError as error:
        from interpret.cli.command import tell_error

        tell_error(str(error))
        sys.exit(NOT_DONE)
    from interpret.cli.commands import make_app

    make_app()(args=words, prog_name=prog_name)


def imported(words: Sequence[str]) -> list[str]:
    """Return the files given by ``--import``, wherever they are on the command line.

    >>> imported(["trace", "--import", "mine.py", "--import=yours.py", "--help"])
    ['mine.py', 'yours.py']
    """
    found = []
    for place, word in enumerate(words):
        if word == "--":
            break
        if word == IMPORT and place + 1 < len(words):
            found.append(words[place + 1])
        elif word.startswith(f"{IMPORT}="):
            found.append(word.removeprefix(f"{IMPORT}="))
    return found
