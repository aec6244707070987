"""What is shown on stderr while a run is at work: a progress bar with the time left, and single lines."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape

T = TypeVar("T")

# Texts come as they are: without this, ":-1:" in a selector of layers would be shown as a thumb.
err = Console(stderr=True, emoji=False)


def say(message: str) -> None:
    """Tell the user something beside the results."""
    err.print(escape(message), highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(doing: str, items: Iterable[T], total: int, *, shown: bool = True) -> Iterator[Iterable[T]]:
    """Give ``items`` back, and show inside the ``with`` block how many were taken, and the time left.

    Args:
        doing: what is being done, before the bar.
        items: what is counted.
        total: how many there are.
        shown: False for no bar.
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
