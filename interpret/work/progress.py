"""Progress during a run or a call: a progress bar with the time left, and single lines on stderr.

A bar is shown in three ways. ``progress_bar`` counts the units of a run. Python calls open ``showing``, and the loops
inside them count their steps with ``counted``; a loop need not know which call it serves, and outside ``showing`` it
shows nothing. Generators yield their results through ``streamed``. The bar of a call or a generator vanishes when it
ends, and is only shown to people: in a terminal or a notebook.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import TypeVar, cast

from rich.console import Console
from rich.markup import escape

T = TypeVar("T")

# With emoji codes enabled, rich would replace ":-1:" in a layer selector by a picture of a thumb.
err = Console(stderr=True, emoji=False)
Update = Callable[[int, int], None]
"""Shows (number of done steps, number of all steps)."""
_counter: ContextVar["_Counter | None"] = ContextVar("counter", default=None)
"""The bar of the Python call in progress."""
_screen = Lock()
"""Held by the bar that is on the screen: there is one at a time, in all threads."""


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
    with _bar(doing, vanishes=False) as update:
        yield items if update is None else _taken(items, total, update)


def streamed(doing: str, items: Iterable[T], total: int, *, shown: bool) -> Iterator[T]:
    """Yield items under a bar that counts them; like that of a call, it vanishes at the end.

    Args:
        doing: label of the bar.
        items: the items.
        total: their number.
        shown: whether to show the bar.
    """
    if not (shown and _watched()):
        yield from items
        return
    with _bar(doing, vanishes=True) as update:
        yield from items if update is None else _taken(items, total, update)


def _taken(items: Iterable[T], total: int, update: Update) -> Iterator[T]:
    update(0, total)
    for done, item in enumerate(items, 1):
        update(done, total)
        yield item


@contextmanager
def showing(doing: str, *, shown: bool) -> Iterator[None]:
    """Show a bar of the steps that loops inside the ``with`` block count; not if a run or another call has a bar.

    Args:
        doing: label of the bar, such as ``Tracing``.
        shown: whether to show it; it is never shown where nobody watches, as in a log file.
    """
    if not (shown and _watched()):
        yield
        return
    with _bar(doing, vanishes=True) as update:
        if update is None:
            yield
            return
        token = _counter.set(_Counter(update))
        try:
            yield
        finally:
            _counter.reset(token)


def counted(items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """Yield items; each is a step of the call in progress, done when the next one is asked for.

    Args:
        items: the items.
        total: their number; None for items that have a length.
    """
    counter = _counter.get()
    if counter is None:
        yield from items
        return
    counter.expect(len(cast(Sized, items)) if total is None else total)
    for item in items:
        yield item
        counter.step()


class _Counter:
    """The steps of a call: those that its loops have announced, and those that are done."""

    def __init__(self, update: Update) -> None:
        self.update, self.done, self.total = update, 0, 0

    def expect(self, steps: int) -> None:
        self.total += steps
        self.update(self.done, self.total)

    def step(self) -> None:
        self.done += 1
        self.update(self.done, self.total)


def _watched() -> bool:
    return err.is_terminal or err.is_jupyter


@contextmanager
def _bar(doing: str, *, vanishes: bool) -> Iterator[Update | None]:
    """Show a bar inside the ``with`` block, and yield what moves it; None if another bar is on the screen."""
    if not _screen.acquire(blocking=False):
        yield None
        return
    kind = _notebook_bar if err.is_jupyter else _terminal_bar
    try:
        with kind(doing, vanishes=vanishes) as update:
            yield update
    finally:
        _screen.release()


@contextmanager
def _terminal_bar(doing: str, *, vanishes: bool) -> Iterator[Update]:
    """Show a bar in a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    parts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *parts, console=err, transient=vanishes) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _notebook_bar(doing: str, *, vanishes: bool) -> Iterator[Update]:
    """Show a bar in a notebook, as HTML: no widgets have to be installed for it."""
    from IPython.display import HTML, display  # installed where notebooks are

    handle = display(HTML(f"{doing} …"), display_id=True)
    last = ""

    def update(done: int, total: int) -> None:
        nonlocal last
        percent = f"{100 * done // max(total, 1)}"
        if percent != last:  # at most 100 messages to the browser, however many steps there are
            last = percent
            bar = f'<progress value="{done}" max="{total}"></progress>'
            handle.update(HTML(f"{doing} {bar} {done} of {total}"))

    try:
        yield update
    finally:
        if vanishes:
            handle.update(HTML(""))
