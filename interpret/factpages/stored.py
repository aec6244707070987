"""Read the facts of a run folder, for pages and for the index; no model is needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interpret.errors import RunError
from interpret.reading import read_json
from interpret.records import FactCell
from interpret.storage.run_folder import RunFolder

DETAILS = "facts"
"""Folder of the files of facts in a run folder."""


def details_name(name: str) -> str:
    """Return the name of the file of a fact in the run folder."""
    return f"{DETAILS}/{name}.json"


@dataclass(frozen=True)
class StoredFact:
    """What a run folder holds of one fact."""

    cells: Sequence[FactCell]
    """Its rows, ordered by token and layer."""
    details: Mapping[str, Any]
    """The content of its file."""

    @property
    def name(self) -> str:
        """The fact's name."""
        return self.cells[0].name


def stored_facts(run: RunFolder) -> Iterator[StoredFact]:
    """Yield the finished facts of a run; one is in memory at a time.

    Raises:
        RunError: if a file of the run is missing, was changed, or is not one of a fact.
    """
    files = run.files
    for cells in run.by_unit():
        name = details_name(cells[0].name)
        if name not in files:
            raise RunError(f"{run.folder}: the run has no file {name}")
        details = read_json(run.intact_file(name, files[name]), like="facts/fact_0.json")
        yield StoredFact(cells, details)
