r"""CSV format of records: write them as the rows of a table, and read them back.

A table is UTF-8 with a header, ``\n`` after each row, and quotes only around cells that need them; any CSV reader reads
it. The annotation of a field determines the form of its cells:

=================  ==========================================================================================
``str``            the text itself
``int``            decimal digits
``float``          ``repr``, which reads back as the same number; also ``nan``, ``inf`` and ``-inf``
``bool``           ``True`` or ``False``
``list[...]``      strict JSON of the above, also nested; NaN is ``null``, infinities are ``1e999`` and ``-1e999``
                   (which JSON readers read as infinity)
``... | None``     an empty cell for None; not allowed for ``str``, whose empty cell is the empty text
=================  ==========================================================================================

With pandas, ``read_csv(path, keep_default_na=False)`` keeps texts such as ``NA`` and ``null`` as they are, and
``float_precision="round_trip"`` keeps the last digit of scalar floats; ``json.loads`` reads list cells. A spreadsheet
program takes texts that begin with ``=``, ``+``, ``-`` or ``@`` for formulas: open ``spreadsheets.for_spreadsheets``.
"""

import csv
import io
import json
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from interpret.errors import brief, one_line
from interpret.reading import parse_json

R = TypeVar("R")

# The largest limit that fits a C long on every platform; the csv module's default is 131,072 characters per cell.
_LONGEST_CELL = 2**31 - 1
_INTEGERS = range(-(2**63), 2**63)
"""The integers that a column may contain: those of 64 bits, which any reader of tables can hold."""
_HEADER = 300
"""Maximum number of characters of the header of a file in a message."""


@dataclass(frozen=True)
class _Column:
    """How one field of a record is stored in a table."""

    attribute: str
    """Name of the field."""
    name: str
    """Name of the column in the header."""
    kind: Any
    """str, int, float, bool or list[...]: the annotation without ``| None``."""
    optional: bool
    """Whether an empty cell means None."""


def column(name: str) -> Any:
    """Define a field whose column has a name that is not a Python identifier.

    >>> current_token: str = column("current token")
    """
    return field(metadata={"column": name})


def columns(record_type: type) -> list[str]:
    """Return the header of the table of ``record_type``: one name per field, in order.

    >>> from interpret.records import Interpretation
    >>> columns(Interpretation)[:3]
    ['name', 'prompt', 'current token']
    """
    return [known.name for known in _layout(record_type)]


def to_cells(record: object) -> list[str]:
    """Return the cells of a record's row.

    Raises:
        ValueError: if a text cannot be encoded as UTF-8; the message names the column.
        TypeError: if a value does not have the type of its field.
    """
    return [_write(known, getattr(record, known.attribute)) for known in _layout(cast(type, type(record)))]


def from_cells(record_type: type[R], cells: Sequence[str]) -> R:
    """Read a record from the cells of its row; the inverse of ``to_cells``.

    Raises:
        ValueError: if there are too many or too few cells, or a cell does not have the type of its column.
    """
    layout = _layout(cast(type, record_type))  # mypy does not accept type[R] as hashable
    if len(cells) != len(layout):
        raise ValueError(f"a row of {record_type.__name__} has {len(layout)} cells; this one has {len(cells)}")
    return record_type(**{known.attribute: _read(known, cell) for known, cell in zip(layout, cells, strict=True)})


def csv_header(record_type: type) -> bytes:
    """Return the first line of the table of ``record_type``."""
    return csv_row(columns(record_type))


def to_csv(records: Iterable[object]) -> bytes:
    """Write records as the rows of a table, without the header."""
    return b"".join(csv_row(to_cells(record)) for record in records)


def from_csv(record_type: type[R], table: bytes) -> list[R]:
    """Read a whole table with its header.

    Raises:
        ValueError: if it is not a table of ``record_type``; the message names the row (row 0 is the header).
    """
    rows = read_cells(table)
    header, wanted = rows[0] if rows else [], columns(record_type)
    if header != wanted:
        raise ValueError(
            f"row 0: the columns are {brief(header, _HEADER)}; expected those of {record_type.__name__}, {wanted}"
        )
    records = []
    for number, cells in enumerate(rows[1:], 1):
        try:
            records.append(from_cells(record_type, cells))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    return records


def read_cells(table: bytes) -> list[list[str]]:
    """Return the cells of all rows of a CSV table, the header first.

    Raises:
        ValueError: if it is not a CSV table.
    """
    usual = csv.field_size_limit()  # a process-wide setting
    try:
        csv.field_size_limit(_LONGEST_CELL)
        return list(csv.reader(io.StringIO(table.decode("utf-8-sig"), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"not a CSV table: {one_line(error)}") from None
    finally:
        csv.field_size_limit(usual)


def csv_row(cells: Sequence[str]) -> bytes:
    """Write one row."""
    text = io.StringIO(newline="")
    # With both characters as line terminator, the csv module quotes cells that contain either of them.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n").encode("utf-8") + b"\n"


@cache
def _layout(record_type: Any) -> tuple[_Column, ...]:
    """Return the columns of a record dataclass, from its annotations."""
    hints = get_type_hints(record_type)
    return tuple(_column(known, hints[known.name]) for known in fields(record_type))


def _column(known: Field[Any], hint: Any) -> _Column:
    """Split an annotation into kind and ``| None``; raise TypeError if it cannot be stored in a cell."""
    name = known.metadata.get("column", known.name)
    optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if optional else [hint]
    kind = element = kinds[0]
    while get_origin(element) is list:
        (element,) = get_args(element)
    if len(kinds) > 1 or element not in (str, int, float, bool) or (optional and kind is str):
        raise TypeError(
            f"column {name!r}: a field annotated {hint} cannot be stored in a cell; see interpret.records.table"
        )
    return _Column(known.name, name, kind, optional)


def _write(known: _Column, value: Any) -> str:
    """Write one cell."""
    if value is None and known.optional:
        return ""
    try:
        text = _text(known.kind, value)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"column {known.name!r}: {brief(error.object)} cannot be written as UTF-8") from None
    except TypeError:
        raise TypeError(f"column {known.name!r} holds {_named(known.kind)}, not {brief(value)}") from None
    return text


def _text(kind: Any, value: Any) -> str:
    """Write a value as the text of a cell."""
    if kind is str and isinstance(value, str):
        return value
    if kind is float:
        return repr(float(value))  # float() first: the repr of a NumPy or torch number is not a plain number
    if kind is bool:
        return str(bool(value))
    return _json(kind, value)


def _json(kind: Any, value: Any) -> str:
    """Write a value as strict JSON; ``json.dumps`` writes NaN and infinities in a form that is not JSON."""
    if get_origin(kind) is list and not isinstance(value, str):
        (element,) = get_args(kind)
        return "[" + ", ".join(_json(element, item) for item in value) + "]"
    if kind is str:
        if not isinstance(value, str):
            raise TypeError
        return json.dumps(value, ensure_ascii=False)
    if kind is float:
        number = float(value)
        if math.isfinite(number):
            return repr(number)
        return "null" if math.isnan(number) else f"{math.copysign(1, number):.0f}e999"
    if kind is bool:
        return "true" if value else "false"
    return str(operator.index(value))


def _read(known: _Column, cell: str) -> Any:
    """Read one cell."""
    if cell == "" and known.optional:
        return None
    try:
        if get_origin(known.kind) is list:
            return _from_json(known.kind, parse_json(cell))
        if known.kind is bool:
            return {"True": True, "False": False}[cell]
        value = known.kind(cell)
        if known.kind is int and value not in _INTEGERS:
            raise ValueError
    except (ValueError, KeyError, OverflowError):  # OverflowError: an integer of a list of floats
        raise ValueError(f"column {known.name!r} holds {_named(known.kind)}, not {cell[:80]!r}") from None
    return value


def _from_json(kind: Any, value: Any) -> Any:
    """Check a JSON value against its kind, and convert it to that Python type."""
    if get_origin(kind) is list and isinstance(value, list):
        (element,) = get_args(kind)
        return [_from_json(element, item) for item in value]
    if kind is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)
    if type(value) is kind and (kind is not int or value in _INTEGERS):
        return value
    raise ValueError


def _named(kind: Any) -> str:
    """Return a kind as it is written in an annotation."""
    return str(kind) if get_args(kind) else kind.__name__
