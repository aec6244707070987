"""What commands share: the two consoles, messages, choices, tables, and work done unit by unit into a run folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from interpret.errors import InputError, RunError, unknown
from interpret.facts.runs import drop_counts
from interpret.storage.run_folder import MANIFEST, TABLE, Run, open_run, read_manifest

# Texts come as they are: without this, ":-1:" in a selector of layers would be shown as a thumb.
out, err = Console(emoji=False), Console(stderr=True, emoji=False)
INTERRUPTED = 130
MOST_SHOWN = 10
"""How many rows, steps, or units that failed are shown."""
Name = TypeVar("Name", bound=str)


class NotAllError(Exception):
    """A run is complete, but for some units that should have been done."""

    def __init__(self, reasons: Mapping[str, str], more: str = "") -> None:
        """Take why each of those units was not done, and what is to be said of further ones."""
        super().__init__(f"{', '.join(reasons)} {more}")
        self.reasons, self.more = reasons, more


@dataclass(frozen=True)
class Work:
    """What a command does to its units, in words."""

    doing: str
    """Before the progress bar."""
    done: str
    """What became of those that were kept."""
    units: str
    """In the plural."""
    failures: tuple[str, ...] = ()
    """How reasons begin of units that should have been done."""


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


def do_units(
    work: Work,
    folder: Path,
    record_type: type,
    steps: Callable[[Run], Iterable[object]],
    *,
    units: Sequence[str],
    identity: Mapping[str, Any],
    circumstances: Mapping[str, Any],
    count: Callable[[Sequence[str]], int] = len,
) -> None:
    """Do what is pending in a run folder with a progress bar; tell what is safe when interrupted.

    Args:
        work: what is done.
        folder: of the run; identity, circumstances and units are as in ``runs.open_run``.
        record_type: the records of its table.
        steps: writes the pending units of an open run, and yields after each step of that.
        units: all of them.
        identity: what decides the numbers.
        circumstances: what may change between openings.
        count: says how many steps some units are.

    Raises:
        Exit: with code 130, if the user interrupts.
        RunError: as ``runs.open_run`` does.
    """
    with open_run(folder, record_type, identity=identity, circumstances=circumstances, units=units) as run:
        if run.finished:
            say(f"{len(run.finished)} of {len(units)} {work.units} are already done")
        if not run.pending:
            return
        with progress(work.doing, steps(run), count(run.pending)) as counted:
            try:
                for _ in counted:
                    pass
            except KeyboardInterrupt:
                say(f"stopped with {len(run.finished)} of {len(units)} {work.units} safe; the same command continues")
                raise typer.Exit(INTERRUPTED) from None


def tell_rows(folder: Path, rows: int) -> None:
    """Say how many rows a run has, and where."""
    tell(f"{rows} rows in {folder / TABLE}")


def tell_counts(work: Work, folder: Path) -> None:
    """Say how many rows a finished run has, and which units have none and why.

    Raises:
        NotAllError: if there are units among these that should have been done.
    """
    manifest = read_manifest(folder)
    counts, dropped = manifest["counts"], manifest["dropped"]
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(drop_counts(dropped).items()))
    tell_rows(folder, counts["rows"])
    units = work.units if counts["in"] != 1 else work.units.removesuffix("s")
    tell(
        f"{counts['in']} {units} in, {counts['kept']} {work.done}, {counts['dropped']} dropped"
        f"{f': {why}' if why else ''}"
    )
    failed = {unit: reason for unit, reason in dropped.items() if reason.startswith(work.failures)}
    if failed:
        left = len(failed) - MOST_SHOWN
        more = f"and {left} more, see 'dropped' in {folder / MANIFEST}" if left > 0 else ""
        raise NotAllError(dict(islice(failed.items(), MOST_SHOWN)), more)
