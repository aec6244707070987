"""What commands say of a run folder when it is done: how many rows, and which units have none and why."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from interpret.cli.console import MOST_SHOWN, tell
from interpret.storage.run_folder import MANIFEST, TABLE, RunFolder
from interpret.work.loop import Work, drop_counts


class NotAllError(Exception):
    """A run is complete, but for some units that should have been done."""

    def __init__(self, reasons: Mapping[str, str], more: str = "") -> None:
        """Take why each of those units was not done, and what is to be said of further ones."""
        super().__init__(f"{', '.join(reasons)} {more}")
        self.reasons, self.more = reasons, more


def tell_rows(folder: Path, rows: int) -> None:
    """Say how many rows a run has, and where."""
    tell(f"{rows} rows in {folder / TABLE}")


def tell_counts(work: Work, run: RunFolder) -> None:
    """Say how many rows a finished run has, and which units have none and why.

    Raises:
        NotAllError: if there are units among these that should have been done.
    """
    counts, dropped = run.manifest["counts"], run.dropped
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(drop_counts(dropped).items()))
    tell_rows(run.folder, counts["rows"])
    units = work.units if counts["in"] != 1 else work.units.removesuffix("s")
    tell(
        f"{counts['in']} {units} in, {counts['kept']} {work.done}, {counts['dropped']} dropped"
        f"{f': {why}' if why else ''}"
    )
    failed = {unit: reason for unit, reason in dropped.items() if reason.startswith(work.failures)}
    if failed:
        left = len(failed) - MOST_SHOWN
        more = f"and {left} more, see 'dropped' in {run.folder / MANIFEST}" if left > 0 else ""
        raise NotAllError(dict(islice(failed.items(), MOST_SHOWN)), more)
