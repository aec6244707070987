"""Rows of files of every kind: the same rows in JSON, JSON Lines, CSV and TSV are the same."""

import csv
import json
import re

import pytest

from interpret.errors import InputError
from interpret.prompts.rows import cell_value
from interpret.reading import BadLine, read_rows

ROWS = [
    {"prompt": 'She said "no", then\nleft', "subject": "She"},
    {"prompt": "東京は日本の", "subject": "東京", "target": "首都"},
    {"prompt": "a\u2028b; c\td", "note": "=1+1"},
]
COLUMNS = ["prompt", "subject", "target", "note"]


def written(path, rows, mark=""):
    """Write rows in the form that the ending of a path says."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(mark)
            table = csv.DictWriter(file, COLUMNS, delimiter="," if path.suffix == ".csv" else "\t")
            table.writeheader()
            table.writerows(rows)
        return path
    lines = path.suffix in (".jsonl", ".ndjson")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(mark + text, encoding="utf-8")
    return path


def read(path):
    return read_rows(path, within="examples", like="examples/examples.json", cell=cell_value)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.csv", "a.tsv", "a.CSV"])
def test_the_same_rows_in_every_form(name, mark, tmp_path):
    path = written(tmp_path / name.lower(), ROWS, mark)
    assert read(path.rename(tmp_path / name)) == ROWS


def test_plain_text_is_a_row_per_line_and_empty_lines_are_none(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone, two\r\n\r\n  three\n".encode())
    assert read(tmp_path / "a.txt") == ["one, two", "  three"]


def test_a_list_within_an_object_or_by_itself(tmp_path):
    for document in (ROWS, {"examples": ROWS, "about": 3}):
        (tmp_path / "a.json").write_text(json.dumps(document))
        assert read(tmp_path / "a.json") == ROWS
    (tmp_path / "a.json").write_text(json.dumps({"rows": ROWS}))
    assert read(tmp_path / "a.json") == []


def test_an_empty_cell_and_an_empty_line_are_absent(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,subject\nRome is,\n,\n\n")
    assert read(tmp_path / "a.csv") == [{"prompt": "Rome is"}]


def test_a_row_of_another_length_does_not_hide_the_others(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,subject\nRome is,Rome,x\nOslo is,Oslo\n")
    assert read(tmp_path / "a.csv") == [
        BadLine("line 2 has 3 cells, the header 2"),
        {"prompt": "Oslo is", "subject": "Oslo"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,prompt\na,b\n", "has the column 'prompt' twice; keep one"),
        ('prompt\n"a\n', "is not a table: line 2: unexpected end of data"),
        (f"prompt\n{'x' * 200_000}\n", "is not a table: line 2: field larger than field limit (131072)"),
    ],
)
def test_what_is_no_table_is_one_message(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / 'a.csv'))} {re.escape(message)}$"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        ("prompt", "[1]", "[1]"),
        ("raw", "TRUE", True),
        ("raw", " false", False),
        ("raw", "yes", "yes"),
        ("occurrence", "1", 1),
        ("target_ids", "[3, 4]", [3, 4]),
        ("states", "[[3, 4]]", [[3, 4]]),
        ("answers", '["Italy"]', ["Italy"]),
        ("ground_truth", "Italy", "Italy"),
    ],
)
def test_cells_have_the_type_of_their_column(column, text, value):
    assert cell_value(column, text) == value


@pytest.mark.parametrize(("column", "text"), [("answers", "['Italy']"), ("occurrence", "first"), ("foil_ids", "3,4")])
def test_a_cell_that_only_looks_like_a_list_is_refused(column, text):
    with pytest.raises(InputError, match=f'"{column}" is .*; expected it as JSON'):
        cell_value(column, text)
