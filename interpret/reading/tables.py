"""Read the rows of a file: JSON, JSON Lines, CSV, TSV or plain text, by the ending of its name.

A row is what a list of JSON or a line of JSON Lines holds; of a table, a dict of its columns, without empty cells; of
plain text, a line. A line that cannot be read does not prevent reading the others.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, named, one_line
from interpret.reading.json_text import numbered_lines, parse_json, read_json
from interpret.reading.text import read_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Ending of a table's name -> what separates its cells."""
LINES, TEXT = (".jsonl", ".ndjson"), ".txt"
"""Endings of JSON Lines, and of plain text."""
KINDS = "JSON, JSON Lines (.jsonl), CSV (.csv), TSV (.tsv) or plain text (.txt)"
"""The forms of files, for messages and help texts."""
Cell = Callable[[str, str], Any]
"""(column, text of the cell) -> its value."""


@dataclass(frozen=True)
class BadLine:
    """A line that could not be read, in place of its row."""

    reason: str


def read_rows(path: str | Path, *, within: str, like: str, cell: Cell) -> list[Any]:
    """Return the rows of a file, in its order.

    Args:
        path: the file; with another ending than those of this module, it is JSON.
        within: of a JSON object, the key of the list of rows.
        like: a valid file of the same kind, which the message names if ``path`` does not exist.
        cell: converts the cells of a table; if it raises an InputError, the row is a ``BadLine``.

    Returns:
        The unchecked rows; none if the file has no list of rows.

    Raises:
        InputError: if the file is missing or cannot be read, JSON is not valid, or a table has no valid header.
    """
    kind = Path(path).suffix.lower()
    if kind in LINES:
        return [_row_of_line(number, line) for number, line in numbered_lines(read_text(path, like=like))]
    if kind == TEXT:
        return [line for _, line in numbered_lines(read_text(path, like=like))]
    if kind in DELIMITERS:
        text = read_text(path, like=like)
        try:
            return list(_table(text, DELIMITERS[kind], cell))
        except InputError as error:
            raise InputError(f"{named(path)} {error}") from None
    document = read_json(path, like=like)
    rows = document.get(within) if isinstance(document, dict) else document
    return rows if isinstance(rows, list) else []


def _row_of_line(number: int, line: str) -> Any:
    try:
        return parse_json(line, nan_allowed=True)
    except InputError as error:
        return BadLine(f"line {number} {error}")


def _table(text: str, delimiter: str, cell: Cell) -> Iterator[dict[str, Any] | BadLine]:
    """Yield the rows of a table; errors continue a sentence that begins with the name of the file."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = _next(lines)
    if header is None:
        return
    columns = [column.strip() for column in header]
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputError(f"has the column {brief(twice[0])} twice; keep one")
    while (cells := _next(lines)) is not None:
        if any(text.strip() for text in cells):
            yield _row_of_cells(lines.line_num, columns, cells, cell)


def _next(lines: Any) -> list[str] | None:
    try:
        return next(lines, None)
    except csv.Error as error:
        raise InputError(f"is not a table: line {lines.line_num}: {one_line(error)}") from None


def _row_of_cells(number: int, columns: list[str], cells: list[str], cell: Cell) -> dict[str, Any] | BadLine:
    if len(cells) != len(columns):
        return BadLine(f"line {number} has {len(cells)} cells, the header {len(columns)}")
    try:
        return {name: cell(name, text) for name, text in zip(columns, cells, strict=True) if text.strip()}
    except InputError as error:
        return BadLine(f"line {number}: {error}")
