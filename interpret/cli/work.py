"""What commands share: the two consoles, messages, choices, tables, and work done unit by unit into a run folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from interpret.cli.console import INTERRUPTED, MOST_SHOWN, progress, say, tell
from interpret.facts.runs import drop_counts
from interpret.storage.run_folder import MANIFEST, TABLE, Run, open_run, read_manifest


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
