"""The outcome of a unit, as bytes: what is written into a run folder, wherever it was computed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from interpret.records import to_csv


@dataclass(frozen=True)
class Kept:
    """The rows of a unit and its further files."""

    csv: bytes
    """The rows as lines of the table, without its header."""
    count: int
    """Number of rows."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Contents of further files of the unit, by name in the run folder, such as ``"grids/a.npz"``."""
    dropped_parts: Mapping[str, str] = field(default_factory=dict)
    """Parts of the unit that have no result -> reason."""

    @classmethod
    def of(
        cls,
        record_type: type,
        records: Iterable[object],
        *,
        files: Mapping[str, bytes] | None = None,
        dropped_parts: Mapping[str, str] | None = None,
    ) -> "Kept":
        """Return records as rows.

        Args:
            record_type: the record type of the table.
            records: all records of the unit; a generator is exhausted.
            files: as in ``Kept``.
            dropped_parts: as in ``Kept``.

        Raises:
            TypeError: if a record is of another type.
            ValueError: if a text cannot be encoded as UTF-8.
        """
        records = list(records)
        for record in records:
            if type(record) is not record_type:
                raise TypeError(f"expected records of type {record_type.__name__}, got {record!r}")
        return cls(to_csv(records), len(records), dict(files or {}), dict(dropped_parts or {}))


@dataclass(frozen=True)
class Dropped:
    """A unit without rows."""

    reason: str


Outcome = Kept | Dropped
