"""What commands print with: the two consoles, messages, choices, tables and progress bars."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from interpret.errors import InputError, RunError, unknown

# Texts come as they are: without this, ":-1:" in a selector of layers would be shown as a thumb.
out, err = Console(emoji=False), Console(stderr=True, emoji=False)


INTERRUPTED = 130


MOST_SHOWN = 10
"""How many rows, steps, or units that failed are shown."""


Name = TypeVar("Name", bound=str)


def say(message: str) -> None:
    """Tell the user something beside the results."""
    err.print(escape(message), highlight=False, soft_wrap=True)


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


@contextmanager
def progress(what: str, items: Iterable[Any], total: int) -> Iterator[Iterator[Any]]:
    """Show a bar with the time left while ``items`` are taken."""
    parts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *parts, console=err) as bar:
        task = bar.add_task(what, total=total)

        def counted() -> Iterator[Any]:
            for item in items:
                bar.advance(task)
                yield item

        yield counted()
