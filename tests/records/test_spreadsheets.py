"""Tables for spreadsheet programs: no cell is a formula, and nothing else changes."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpret.records import TraceCell, csv_header, to_csv
from interpret.records.spreadsheets import escaped, for_spreadsheets
from interpret.records.table import csv_row, read_cells
from reference.trace_rows import cells


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1+1", "-1+1", "@SUM(1)", '=HYPERLINK("http://x","y")', "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "-",
     "+x", "-inf", "=", "-1e", "--1", "+1 2"],
)  # fmt: skip
def test_a_formula_gets_an_apostrophe(cell: str) -> None:
    assert escaped(cell) == f"'{cell}"


@pytest.mark.parametrize(
    "cell", ["", " ", "Paris", " Paris", "-0.5", "+1", "-1e-05", "1e+20", "-.5", "0", "nan", "[-1, 2]", "a=b", "'=1"]
)
def test_other_cells_are_unchanged(cell: str) -> None:
    assert escaped(cell) == cell


@given(rows=st.lists(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=2, max_size=2), min_size=1))
def test_every_cell_is_the_original_one_or_has_an_apostrophe(rows: list[list[str]]) -> None:
    made = for_spreadsheets(b"".join(map(csv_row, rows)))
    assert made.startswith(b"\xef\xbb\xbf")
    got = list(csv.reader(io.StringIO(made.decode("utf-8-sig"), newline=""), strict=True))
    for row, original in zip(got, rows, strict=True):
        for cell, text in zip(row, original, strict=True):
            assert cell in (text, f"'{text}")
            assert not cell.lstrip(" ").startswith(("=", "@")), "a formula"


def test_a_table_keeps_its_numbers() -> None:
    table = csv_header(TraceCell) + to_csv(cells([[-0.5]], span=(0, 1)))
    assert read_cells(for_spreadsheets(table)) == read_cells(table)
