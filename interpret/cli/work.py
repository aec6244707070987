"""Print the summary of a finished run: number of rows, and dropped units with their reasons."""

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from interpret.cli.console import MOST_SHOWN, say, tell
from interpret.storage.layout import MANIFEST, TABLE
from interpret.storage.run_folder import RunFolder
from interpret.work.loop import Work, drop_counts

MOST_REASONS = 3
"""Maximum number of dropped units to print, if that is no failure."""


class NotAllError(Exception):
    """A run is complete, but some units could not be processed."""

    def __init__(self, reasons: Mapping[str, str], more: str = "") -> None:
        """Store the reason for each failed unit, and a line about further failed units, which may be empty."""
        super().__init__(f"{', '.join(reasons)} {more}")
        self.reasons, self.more = reasons, more


def tell_rows(folder: Path, rows: int) -> None:
    """Print the number of rows and the path of the table."""
    tell(f"{rows} rows in {folder / TABLE}")


def tell_counts(work: Work, run: RunFolder) -> None:
    """Print the numbers of rows, of processed units, and of dropped units and parts of units by kind of reason.

    Raises:
        NotAllError: if some units or parts failed, as defined by ``work.failures``.
    """
    counts, dropped = run.manifest["counts"], run.dropped
    parts = {f"{unit}, {part}": reason for unit, own in run.dropped_parts.items() for part, reason in own.items()}
    tell_rows(run.folder, counts["rows"])
    units = work.units if counts["in"] != 1 else work.units.removesuffix("s")
    tell(f"{counts['in']} {units}: {counts['kept']} {work.done}, {counts['dropped']} dropped{_why(dropped)}")
    if parts:
        of_them = work.parts if len(parts) != 1 else work.parts.removesuffix("s")
        tell(f"{len(parts)} {of_them} of these dropped{_why(parts)}")
    failed = {one: reason for one, reason in (dropped | parts).items() if reason.startswith(work.failures)}
    if failed:
        left = len(failed) - MOST_SHOWN
        where = "'dropped' and 'dropped_parts'" if parts else "'dropped'"
        more = f"and {left} more, see {where} in {run.folder / MANIFEST}" if left > 0 else ""
        raise NotAllError(dict(islice(failed.items(), MOST_SHOWN)), more)
    # An empty table is told of with the errors, so that nobody has to search for the reason.
    _tell_dropped(dropped, run, tell if counts["kept"] else say)


def _tell_dropped(dropped: Mapping[str, str], run: RunFolder, show: Callable[[str], None]) -> None:
    """Show the first units that were left out, each with its reason."""
    for unit, reason in islice(dropped.items(), MOST_REASONS):
        show(f"{unit}: {reason}")
    if len(dropped) > MOST_REASONS:
        show(f"and {len(dropped) - MOST_REASONS} more, see 'dropped' in {run.folder / MANIFEST}")
    if any(reason.startswith("not known") for reason in dropped.values()):
        show("--no-filter keeps facts that the model does not know")


def _why(dropped: Mapping[str, str]) -> str:
    """Return the kinds of reasons with their numbers, in brackets; empty if nothing was dropped."""
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(drop_counts(dropped).items()))
    return f" ({why})" if why else ""
