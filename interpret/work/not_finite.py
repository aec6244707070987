"""Count the rows of a run that have numbers which are not finite (NaN or infinity), for the message at its end."""

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from interpret.errors import RunError
from interpret.finite import MODEL_GIVES_NAN
from interpret.reading import open_file
from interpret.storage.layout import TABLE
from interpret.storage.run_folder import RunFolder

MARKS = (b"nan", b"inf", b"null", b"1e999")
"""How ``interpret.records.table`` writes such numbers; other texts may contain them too."""


def rows_not_finite(run: RunFolder) -> str:
    """Return a message that counts the rows of a run with numbers that are not finite; "" if there are none.

    Raises:
        RunError: if the table cannot be read.
    """
    if not _may_have_some(run.folder / TABLE):
        return ""
    bad = sum(any(not math.isfinite(number) for number in _numbers(row)) for rows in run.by_unit() for row in rows)
    rows = run.manifest["counts"]["rows"]
    if not bad:
        return ""
    if bad == rows:
        return f"all {rows} rows have numbers that are not finite (NaN or infinity): {MODEL_GIVES_NAN}"
    return (
        f"{bad} of {rows} rows {'has' if bad == 1 else 'have'} numbers that are not finite (NaN or infinity); "
        "they are left out of averages and sorted last"
    )


def _may_have_some(table: Path) -> bool:
    """Look for the texts of such numbers, because most tables have none, and parsing a large table takes long."""
    try:
        with open_file(table) as file:
            return any(mark in line for line in file for mark in MARKS)
    except OSError as error:
        raise RunError(f"{table}: cannot be read: {error.strerror}") from error


def _numbers(value: Any) -> Iterator[float]:
    """Yield the floats of a record, also those in its lists."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif not isinstance(value, (str, int, type(None))):
        for known in fields(value):
            yield from _numbers(getattr(value, known.name))
