"""Output of the commands: consoles for stdout and stderr, lines and tables; also the check of a choice."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interpret.errors import InputError, RunError, unknown
from interpret.work.progress import err as err
from interpret.work.progress import say as say

# With emoji codes enabled, rich would replace ":-1:" in a layer selector by a picture of a thumb.
out = Console(emoji=False)

NOT_DONE, NOT_ALL, INTERRUPTED = 2, 3, 130
"""Exit codes: invalid input; finished, but some units could not be processed; interrupted."""


MOST_SHOWN = 10
"""Maximum number of rows, steps or failed units to print."""


Name = TypeVar("Name", bound=str)


def tell(line: str) -> None:
    """Print a line of results on stdout, without interpreting markup."""
    out.print(escape(line), highlight=False, soft_wrap=True)


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and a table."""
    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    tell(title)
    out.print(table)


def choice(kind: str, name: str, allowed: Iterable[Name]) -> Name:
    """Return the given name if it is allowed.

    Args:
        kind: what the name denotes, for the message.
        name: the given name.
        allowed: the allowed names.

    Raises:
        InputError: if the name is not allowed.
    """
    names = list(allowed)
    for one in names:
        if one == name:
            return one
    raise InputError(unknown(kind, name, names))


def make_folder(folder: Path) -> None:
    """Create a folder for results, if it does not exist.

    Raises:
        RunError: if it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be created: {error.strerror}") from error
