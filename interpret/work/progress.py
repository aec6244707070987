"""Progress on stderr during a run: a progress bar with the time left, and single lines."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape

T = TypeVar("T")

# With emoji codes enabled, rich would replace ":-1:" in a layer selector by a picture of a thumb.
err = Console(stderr=True, emoji=False)


def say(message: str) -> None:
    """Print a line on stderr; results go to stdout."""
    err.print(escape(message), highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(doing: str, items: Iterable[T], total: int, *, shown: bool = True) -> Iterator[Iterable[T]]:
    """Show a progress bar inside the ``with`` block; it counts the items that are taken from the returned iterable.

    Args:
        doing: label of the bar.
        items: the items to count.
        total: number of items.
        shown: whether to show the bar.

    Yields:
        An iterable over the same items.
    """
    if not shown:
        yield items
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    parts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *parts, console=err) as bar:
        task = bar.add_task(doing, total=total)

        def counted() -> Iterator[T]:
            for item in items:
                bar.advance(task)
                yield item

        yield counted()
