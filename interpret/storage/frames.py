"""Convert tables to pandas DataFrames with the types of their records. pandas is imported only when it is needed."""

import io
from collections.abc import Sequence
from dataclasses import fields
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from interpret.errors import one_line
from interpret.reading import parse_json
from interpret.records import columns

if TYPE_CHECKING:
    import pandas

DTYPES = {int: "int64", float: "float64", bool: "bool", str: "str"}
OPTIONAL_DTYPES = {int: "Int64", float: "float64", bool: "boolean"}
"""Types of columns with missing values: a missing float is NaN, other missing values are ``pandas.NA``."""


def record_frame(record_type: type, records: Sequence[object]) -> "pandas.DataFrame":
    """Return records as a DataFrame with one row per record, and the columns of the CSV table.

    Args:
        record_type: type of the records; sets the columns, also if there are no records.
        records: the rows.
    """
    import pandas

    hints = get_type_hints(record_type)
    found = {
        name: pandas.Series([getattr(one, field.name) for one in records], dtype=_dtype(hints[field.name]))
        for name, field in zip(columns(record_type), fields(record_type), strict=True)
    }
    return pandas.DataFrame(found)


def _dtype(hint: Any) -> str:
    """Return the pandas type of a column; ``object`` for lists."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType in get_args(hint) and len(kinds) == 1:
        return OPTIONAL_DTYPES.get(kinds[0], "object")
    return DTYPES.get(hint, "object")


def plain_frame(table: bytes) -> "pandas.DataFrame":
    """Return a CSV table of unknown record type as a DataFrame.

    Each column has the first type among int, float, bool, list and str that fits all its cells; empty cells are missing
    values, except in a column of str.

    Raises:
        ValueError: if it is not a CSV table.
    """
    import pandas

    try:
        texts = pandas.read_csv(io.BytesIO(table), dtype=str, keep_default_na=False)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"not a CSV table: {one_line(error)}") from None
    return pandas.DataFrame({name: _typed(texts[name].tolist()) for name in texts.columns})


def _typed(cells: Sequence[str]) -> "pandas.Series":
    import pandas

    empty = "" in cells
    for kind, read in (
        (int, _int),
        (float, float),
        (bool, {"True": True, "False": False}.__getitem__),
        (list, _list),
    ):
        try:
            values = [None if cell == "" else read(cell) for cell in cells]
        except (ValueError, KeyError):
            continue
        if any(value is not None for value in values):
            return pandas.Series(values, dtype=(OPTIONAL_DTYPES if empty else DTYPES).get(kind, "object"))
    return pandas.Series(cells, dtype="str")


def _int(cell: str) -> int:
    """Read an integer of 64 bits."""
    value = int(cell)
    if not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _list(cell: str) -> Any:
    value = parse_json(cell)
    if not isinstance(value, list):
        raise ValueError
    return value
