"""Runs of ``interpret trace`` on a tiny model: their command lines and what they write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interpret.records import TraceCell
from interpret.storage import run_folder
from reference.commands import json_file


def file_of(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a fact file."""
    return json_file(folder / "facts.json", rows)


def arguments(model_folder: Path, facts: Path, output: Path, *more: object) -> list[str]:
    """Return the command line of a quick run."""
    quick = ["--samples", "2", "--no-filter", "--window", "3"]
    paths = ["--model", str(model_folder), "--facts", str(facts), "--output", str(output)]
    return ["trace", *paths, "--device", "cpu", *quick, *(str(argument) for argument in more)]


def table_of(folder: Path) -> list[TraceCell]:
    """Return the rows of a run."""
    return run_folder.read_table(folder, TraceCell)


def results_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all result files of a run."""
    files = [folder / "table.csv", folder / "peaks.csv", *(folder / "grids").iterdir()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}
