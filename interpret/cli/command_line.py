"""The one call that runs a command line: extensions first, so that options and help know what they register."""

import sys
import warnings
from collections.abc import Sequence

from interpret.errors import InterpretError
from interpret.work.extensions import load_extensions

IMPORT = "--import"
NOT_DONE = 2


def main(argv: Sequence[str] | None = None, *, prog_name: str = "interpret") -> None:
    """Run a command line and exit with its code; a user's mistake is one message, never a traceback."""
    # transformers 4.34.0 uses names that torch has since renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*_register_pytree_node.*")
    warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        load_extensions(imported(words))
    except InterpretError as error:
        from interpret.cli.command import tell_error

        tell_error(str(error))
        sys.exit(NOT_DONE)
    from interpret.cli.commands import make_app

    make_app()(args=words, prog_name=prog_name)


def imported(words: Sequence[str]) -> list[str]:
    """Return the files that a command line imports, wherever they stand on it.

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
