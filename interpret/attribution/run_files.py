"""The files of an attribution run: one per prompt, numbered as the prompts, and read one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed
from interpret.errors import InputError
from interpret.storage.run_folder import RunFolder

FILES = "attributions"


def file_name(number: int) -> str:
    """Return the name of the file of a prompt in the run folder."""
    return f"{FILES}/{number:05d}.json.gz"


def attribution_of(run: RunFolder) -> Attribution:
    """Return the attributed prompts of a run as one attribution; each is read from its file on access.

    Raises:
        InputError: if no prompt of the run was attributed, or a file cannot be read, here or on access.
        RunError: if a file is missing or was changed, here or on access; the same command makes it again.
    """
    kept = [number for number, unit in enumerate(run.units) if unit not in run.dropped]
    if not kept:
        raise InputError(f"{run.folder} holds no attributed prompt; see 'dropped' in its manifest")
    stored = _Stored(run, run.files, kept)
    return Attribution(stored, stored.read(0).info)


@dataclass(frozen=True)
class _Stored(Sequence[Attributed]):
    """Attributed prompts of a run, read from their files on every access; none is kept in memory."""

    run: RunFolder
    files: Mapping[str, int]
    """Name of a file -> its checksum."""
    numbers: Sequence[int]
    """Indices of the prompts in the run."""

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Attributed: ...

    @overload
    def __getitem__(self, place: slice) -> "_Stored": ...

    def __getitem__(self, place: int | slice) -> "Attributed | _Stored":
        if isinstance(place, slice):
            return _Stored(self.run, self.files, self.numbers[place])
        return self.read(place).sequences[0]

    def read(self, place: int) -> Attribution:
        """Read the file of a prompt."""
        name = file_name(self.numbers[place])
        return Attribution.load(self.run.intact_file(name, self.files[name]))
