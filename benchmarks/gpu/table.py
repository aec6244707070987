"""The results: one JSON file with every number, and one Markdown file with tables."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExactRow:
    """How far results of ours are from the right ones."""

    case: str
    shape: str
    dtype: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the error is allowed; NaN is not."""
        return self.error <= self.allowed

    def cells(self) -> dict[str, str]:
        """Return the cells of the row of the table."""
        return {
            "case": self.case,
            "model": self.shape,
            "dtype": self.dtype,
            "error": f"{self.error:.1e}",
            "allowed": f"{self.allowed:.1e}",
            "": "exact" if self.passed else "NOT EXACT",
        }


@dataclass(frozen=True)
class SpeedRow:
    """The speed of ours, compared with a plain implementation."""

    case: str
    shape: str
    dtype: str
    plain_seconds: float
    seconds: float
    ratio: float
    """The median of the paired ratios: plain time to ours, or if ``at_most``, our time to the plain one."""
    target: float
    at_most: bool
    difference: float
    """Largest difference of the results, as a share of the largest."""
    allowed: float | None
    """Largest difference allowed; None in low precision, where the exactness of the same case decides."""
    plain_peak: float | None
    """GiB allocated at most beside the model; None on a CPU."""
    peak: float | None
    share_of_rate: float
    """Matrix arithmetic per second, as a share of that of one large matrix product."""
    waits: int | None
    """How often the CPU waited for the GPU in one run of ours; None on a CPU."""

    @property
    def passed(self) -> bool:
        """Whether the results agree; the target depends on the machine."""
        return self.allowed is None or self.difference <= self.allowed

    @property
    def reached(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def cells(self) -> dict[str, str]:
        """Return the cells of the row of the table."""
        return {
            "case": self.case,
            "model": self.shape,
            "dtype": self.dtype,
            "plain": f"{self.plain_seconds:.3g} s",
            "ours": f"{self.seconds:.3g} s",
            "ratio": f"{self.ratio:.3g}",
            "target": f"{'at most' if self.at_most else 'at least'} {self.target:g}",
            "reached": "yes" if self.reached else "no",
            "difference": f"{self.difference:.1e}" + ("" if self.passed else " TOO LARGE"),
            "peak, plain": _gib(self.plain_peak),
            "peak, ours": _gib(self.peak),
            "share of the matrix rate": f"{self.share_of_rate:.0%}",
            "waits": "" if self.waits is None else str(self.waits),
        }


@dataclass(frozen=True)
class FailedRow:
    """A case that gave no numbers."""

    case: str
    shape: str
    dtype: str
    reason: str
    passed: bool = False
    """True if the case was left out, because it does not fit in memory or in time."""

    def cells(self) -> dict[str, str]:
        """Return the cells of the row of the table."""
        what = "left out" if self.passed else "FAILED"
        return {"case": self.case, "model": self.shape, "dtype": self.dtype, what: self.reason}


@dataclass(frozen=True)
class OutcomeRow:
    """Tests of one file with one outcome and one reason."""

    file: str
    outcome: str
    count: int
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether no test failed."""
        return self.outcome in ("passed", "skipped")

    def cells(self) -> dict[str, str]:
        """Return the cells of the row of the table."""
        outcome = self.outcome if self.passed else self.outcome.upper()
        return {"file": self.file, "tests": str(self.count), "outcome": outcome, "reason": self.reason}


Row = ExactRow | SpeedRow | FailedRow | OutcomeRow
_TITLES = {
    "exactness": (
        "In float32, errors are the largest differences from plain implementations, as shares of the largest result. "
        "In lower precision they are relative distances, in the Euclidean norm, from what the same weights give in "
        "float32; allowed is twice the distance of the plain implementation."
    ),
    "speed": (
        "The difference between the two results is a share of the largest result. Peaks are GiB beside the model. The "
        "last columns are the matrix arithmetic per second as a share of that of one large product, and how often the "
        "CPU waited for the GPU in one run of ours. Targets are for a GPU; on a CPU the models are too small for them."
    ),
    "tests": "Tests with the marker `gpu`. Those that were skipped were left out for the reason given.",
}


@dataclass
class Report:
    """The results of a run; it is written after each of them, so that a run that is cut off leaves its results."""

    folder: Path
    machine: dict[str, Any]
    rows: dict[str, list[Row]] = field(default_factory=lambda: {title: [] for title in _TITLES})

    @property
    def passed(self) -> bool:
        """Whether all tests passed and all results agree."""
        return all(row.passed for rows in self.rows.values() for row in rows)

    def add(self, title: str, row: Row) -> None:
        """Add a row to a table, print it and write the files."""
        self.rows[title].append(row)
        print("  ".join(f"{name} {cell}".strip() for name, cell in row.cells().items() if cell), flush=True)
        self.write()

    def write(self) -> None:
        """Write ``gpu.json`` and ``gpu.md``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {
            title: [asdict(row) | {"passed": row.passed, "kind": type(row).__name__} for row in rows]
            for title, rows in self.rows.items()
        }
        text = json.dumps({"machine": self.machine, "passed": self.passed, **found}, indent=1)
        (self.folder / "gpu.json").write_text(text + "\n", encoding="utf-8")
        (self.folder / "gpu.md").write_text(self._markdown(), encoding="utf-8")

    def _markdown(self) -> str:
        parts = ["# What this machine shows", ", ".join(f"{name} {value}" for name, value in self.machine.items())]
        for title, text in _TITLES.items():
            parts += [f"## {title.capitalize()}", text]
            for kind in dict.fromkeys(tuple(row.cells()) for row in self.rows[title]):
                parts.append(_table([row.cells() for row in self.rows[title] if tuple(row.cells()) == kind]))
        return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table of rows with the same columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _gib(peak: float | None) -> str:
    return "" if peak is None else f"{peak:.2f} GiB"
