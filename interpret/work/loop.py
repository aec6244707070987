"""Fill a run folder: process the pending units one by one, with a progress bar.

Each analysis provides a function that processes the units of an open run and yields after each step. Commands and
Python functions both use ``fill_folder``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.finite import counted_once
from interpret.storage.manifest import read_manifest
from interpret.storage.opening import open_run
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.work.not_finite import rows_not_finite
from interpret.work.progress import progress_bar, say


@dataclass(frozen=True)
class Work:
    """The words with which messages describe an analysis."""

    doing: str
    """Label of the progress bar, such as ``Tracing``."""
    done: str
    """Past participle for the kept units, such as ``traced``."""
    units: str
    """Name of the units in the plural, such as ``facts``."""
    parts: str = "parts"
    """Name of the parts that units are made of, in the plural, such as ``mediators``; see ``Run.parts``."""
    failures: tuple[str, ...] = ()
    """First words of the drop reasons that count as failures; a command with failures exits with code 3."""


def fill_folder(
    work: Work,
    folder: Path | str,
    record_type: type,
    steps: Callable[[Run], Iterable[object]],
    *,
    units: Sequence[str],
    identity: Mapping[str, Any],
    circumstances: Mapping[str, Any],
    count: Callable[[Sequence[str]], int] = len,
    others: Sequence[str] = (),
    progress: bool = True,
) -> RunFolder:
    """Process the pending units of a run folder, and return the folder.

    Rows with numbers that are not finite are counted on stderr at the end. On ``KeyboardInterrupt``, print on stderr
    how many units are finished, and raise it again.

    Args:
        work: the words for messages.
        folder: the run folder, as in ``run_folder.open_run``.
        record_type: the record type of the table.
        steps: writes the pending units of an open run, and again the files of ``Run.damaged`` units; yields after each
            step.
        units: the names of all units, finished ones included.
        identity: everything that determines the numbers, as in ``run_folder.open_run``.
        circumstances: everything else that is recorded, as in ``run_folder.open_run``.
        count: returns the number of steps that some units take.
        others: names of the files and folders besides the table that ``steps`` writes into the run folder.
        progress: show a progress bar on stderr, and how many units were finished before.

    Returns:
        The run folder, for reading.

    Raises:
        RunError: as ``run_folder.open_run`` raises.
    """
    with open_run(
        folder, record_type, identity=identity, circumstances=circumstances, units=units, others=others
    ) as run:
        if (run.finished or run.n_parts) and progress:
            say(f"{_safe(work, run)} are already done")
        if again := run.damaged:
            what = f"files of {len(again)} finished {work.units} are missing or changed"
            say(f"{what}, and are made again, such as of {again[0]!r}")
        if again or run.pending:
            bar = progress_bar(work.doing, steps(run), count([*again, *run.pending]), shown=progress)
            with counted_once(), bar as counted:
                try:
                    for _ in counted:
                        pass
                except KeyboardInterrupt:
                    say(f"stopped after {_safe(work, run)}; the same command resumes the run")
                    raise
    filled = RunFolder(Path(folder), read_manifest(folder), record_type)
    if words := rows_not_finite(filled):
        say(words)
    return filled


def _safe(work: Work, run: Run) -> str:
    """Return how much of a run is on disk, in words."""
    units = f"{len(run.finished)} of {len(run.units)} {work.units}"
    parts = work.parts if run.n_parts != 1 else work.parts.removesuffix("s")
    return f"{units} and {run.n_parts} {parts} of the next" if run.n_parts else units


def drop_counts(dropped: Mapping[str, str]) -> Counter[str]:
    """Count the dropped units of a run for each kind of reason.

    Args:
        dropped: unit -> reason, as in ``RunFolder.dropped``; the kind is the text before the first colon.

    >>> drop_counts({"row_3": "bad row: row 3: ...", "known_1": "not known: wrong answer, ' a'"})
    Counter({'bad row': 1, 'not known': 1})
    """
    return Counter(reason.partition(":")[0] for reason in dropped.values())
