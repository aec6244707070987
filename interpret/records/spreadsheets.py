"""CSV tables for spreadsheet programs, which take some texts for formulas.

A text of a model or of a user may begin with ``=``, ``+``, ``-`` or ``@``. Excel, LibreOffice and Google Sheets compute
such a cell when they open a CSV file, and formulas can start programs or send data (CSV injection). With an apostrophe
before it, a cell is shown as the text that it is.
"""

import re

from interpret.records.table import csv_row, read_cells

_FORMULA = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters of formulas, also full-width; tab and line breaks, because some programs skip them."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def for_spreadsheets(table: bytes) -> bytes:
    """Return a CSV table in which no cell is a formula; with a byte order mark, by which Excel recognises UTF-8.

    Numbers are unchanged. ``read_table`` and pandas should read the original table: escaped texts differ from it.

    Raises:
        ValueError: if it is not a CSV table.
    """
    return _BYTE_ORDER_MARK + b"".join(csv_row([escaped(cell) for cell in row]) for row in read_cells(table))


def escaped(cell: str) -> str:
    """Return a cell with an apostrophe before it, if a spreadsheet would take it for a formula.

    >>> escaped("=1+1"), escaped("-0.5"), escaped(" Paris")
    ("'=1+1", '-0.5', ' Paris')
    """
    is_formula = cell.lstrip(" ")[:1] in _FORMULA and cell.strip(" ") != ""
    return f"'{cell}" if is_formula and not _NUMBER.fullmatch(cell) else cell
