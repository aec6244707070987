"""The one loop that fills a run folder: what is pending is done unit by unit, with a progress bar.

Every analysis gives it a function that works on an open run and yields after each step; commands and calls from Python
come here alike.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.storage.run_folder import Run, RunFolder, open_run, read_manifest
from interpret.work.progress import progress_bar, say


@dataclass(frozen=True)
class Work:
    """What an analysis does to its units, in words."""

    doing: str
    """Before the progress bar."""
    done: str
    """What became of those that were kept."""
    units: str
    """In the plural."""
    failures: tuple[str, ...] = ()
    """How reasons begin of units that should have been done."""


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
    progress: bool = True,
) -> RunFolder:
    """Do what is pending in a run folder, and return the folder.

    When the user interrupts, one line on stderr says how many units are safe, and the ``KeyboardInterrupt`` goes on.

    Args:
        work: what is done.
        folder: of the run; identity, circumstances and units are as in ``run_folder.open_run``.
        record_type: the records of its table.
        steps: writes the pending units of an open run, and yields after each step of that.
        units: all of them.
        identity: what decides the numbers.
        circumstances: what may change between openings.
        count: says how many steps some units are.
        progress: show on stderr how many units were done before, and a progress bar.

    Raises:
        RunError: as ``run_folder.open_run`` does.
    """
    with open_run(folder, record_type, identity=identity, circumstances=circumstances, units=units) as run:
        if run.finished and progress:
            say(f"{len(run.finished)} of {len(units)} {work.units} are already done")
        if run.pending:
            with progress_bar(work.doing, steps(run), count(run.pending), shown=progress) as counted:
                try:
                    for _ in counted:
                        pass
                except KeyboardInterrupt:
                    done = len(run.finished)
                    say(f"stopped with {done} of {len(units)} {work.units} safe; the same command continues")
                    raise
    return RunFolder(Path(folder), read_manifest(folder), record_type)


def drop_counts(dropped: Mapping[str, str]) -> Counter[str]:
    """Count the units a run dropped by the kind of reason.

    Args:
        dropped: units and reasons, as ``RunFolder.dropped`` holds them.

    >>> drop_counts({"row_3": "bad row: row 3: ...", "known_1": "not known: wrong answer, ' a'"})
    Counter({'bad row': 1, 'not known': 1})
    """
    return Counter(reason.partition(":")[0] for reason in dropped.values())
