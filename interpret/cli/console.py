"""What commands print with: the two consoles, messages, choices and tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interpret.errors import InputError, RunError, unknown
from interpret.work.progress import err, say

__all__ = ["INTERRUPTED", "MOST_SHOWN", "choice", "err", "make_folder", "out", "say", "show_table", "tell"]

# Texts come as they are: without this, ":-1:" in a selector of layers would be shown as a thumb.
out = Console(emoji=False)


INTERRUPTED = 130


MOST_SHOWN = 10
"""How many rows, steps, or units that failed are shown."""


Name = TypeVar("Name", bound=str)


def tell(line: str) -> None:
    """Print a line of the results as it is."""
    out.print(escape(line), highlight=False, soft_wrap=True)


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their headings, and what they are above."""
    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    tell(title)
    out.print(table)


def choice(kind: str, name: str, allowed: Iterable[Name]) -> Name:
    """Return the one of some names that was typed.

    Raises:
        InputError: if it is none of these.
    """
    names = list(allowed)
    for one in names:
        if one == name:
            return one
    raise InputError(unknown(kind, name, names))


def make_folder(folder: Path) -> None:
    """Make a folder for results, if it is not there.

    Raises:
        RunError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from error
