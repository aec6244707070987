"""The CSV format: what is written is read back, by us and by pandas, for any text and any number."""

import csv
import json
import math
from dataclasses import dataclass, fields, make_dataclass
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interpret.records import Interpretation, column, columns, csv_header, from_cells, from_csv, to_cells, to_csv

PUBLISHED = [
    *("name", "prompt", "current token", "token_idx", "interpretation", "prompt_output", "prompt_token_list"),
    *("category", "layer_idx", "interpretation_weights", "interpretation_prob"),
    *("repeat_prompt", "repeat_prompt_name"),
]
OURS = [
    "interpretation_text",
    "interpretation_tokens",
    "probability_without_insertion",
    "signed_relevancy",
    "wrong_token_idx",
    "probability_with_wrong_vector",
    "probability_with_text",
    "gain_over_nothing",
    "gain_over_wrong_vector",
    "gain_over_text",
    "says_nothing",
    "says_more_than_controls",
    "overlap_with_control",
    "site",
    "insertion_layer",
    "kind",
]


@dataclass(frozen=True)
class Every:
    """A field of each kind."""

    text: str = column("any text")
    whole: int
    number: float
    yes: bool
    wholes: list[int]
    numbers: list[float]
    texts: list[str]
    answers: list[bool]
    grid: list[list[float]]
    maybe_whole: int | None
    maybe_number: float | None
    maybe_yes: bool | None
    maybe_list: list[float] | None


# No deadline: a slow machine is not a failure.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Characters that are special in CSV, JSON, spreadsheets or C strings are drawn often.
awkward = st.sampled_from(
    list(",\"'\n\r\t \\;[]{}\0\x1a\x85\u2028\ufeff▁é語🙂") + ["\r\n", '""', "NA", "null", "nan", "1"]
)
texts = st.lists(awkward | st.characters(exclude_categories=["Cs"]), max_size=6).map("".join)
wholes, numbers = st.integers(-(2**63), 2**63 - 1), st.floats()
every = st.builds(
    Every,
    text=texts,
    whole=wholes,
    number=numbers,
    yes=st.booleans(),
    wholes=st.lists(wholes, max_size=4),
    numbers=st.lists(numbers, max_size=4),
    texts=st.lists(texts, max_size=4),
    answers=st.lists(st.booleans(), max_size=3),
    grid=st.lists(st.lists(numbers, max_size=3), max_size=3),
    maybe_whole=st.none() | wholes,
    maybe_number=st.none() | numbers,
    maybe_yes=st.none() | st.booleans(),
    maybe_list=st.none() | st.lists(numbers, max_size=3),
)


def interpretation(**changes: object) -> Interpretation:
    """Return an ordinary row."""
    values = {
        "name": "facts_1",
        "prompt": "[INST] The capital of\nFrance, is [/INST]",
        "current_token": "▁France",
        "token_idx": 4,
        "interpretation": [3681, 338],
        "prompt_output": ' "Paris"',
        "prompt_token_list": ["[", "INST", "]", " The"],
        "category": "facts",
        "layer_idx": 2,
        "interpretation_weights": [0.1, 0.25],
        "interpretation_prob": [0.30000000000000004, 1e-7],
        "repeat_prompt": "[INST] _ _ [/INST] Sure:",
        "repeat_prompt_name": "repeat",
        "interpretation_text": "Paris is",
        "probability_without_insertion": [0.2, 0.0],
        "signed_relevancy": [-0.1, 0.25],
        "interpretation_tokens": [" Paris", " is"],
        "wrong_token_idx": 2,
        "probability_with_wrong_vector": [0.2, 0.5],
        "probability_with_text": [0.1, 0.5],
        "gain_over_nothing": 0.25,
        "gain_over_wrong_vector": None,
        "gain_over_text": 0.125,
        "says_nothing": False,
        "says_more_than_controls": True,
        "overlap_with_control": 0.5,
        "site": "hidden",
        "insertion_layer": 1,
        "kind": "interpretation",
    }
    return Interpretation(**{**values, **changes})  # type: ignore[arg-type]


def same(left: object, right: object) -> bool:
    """Compare value and type by ``repr``: nan equals nan, and 0.0 differs from -0.0."""
    return repr(left) == repr(right)


def test_interpretation_has_the_published_columns_then_ours() -> None:
    assert columns(Interpretation) == PUBLISHED + OURS
    assert csv_header(Interpretation) == (",".join(PUBLISHED + OURS) + "\n").encode()


@relaxed
@given(every)
def test_cells_read_back_as_the_record(record: Every) -> None:
    assert same(from_cells(Every, to_cells(record)), record)


@relaxed
@given(st.lists(every, max_size=3))
def test_table_reads_back_as_the_records(rows: list[Every]) -> None:
    assert same(from_csv(Every, csv_header(Every) + to_csv(rows)), rows)


@relaxed
@given(st.lists(every, min_size=1, max_size=3))
def test_pandas_and_json_read_the_same_values(rows: list[Every]) -> None:
    table = csv_header(Every) + to_csv(rows)
    frame = pd.read_csv(BytesIO(table), keep_default_na=False, dtype=str)
    assert list(frame.columns) == columns(Every)
    assert len(frame) == len(rows)
    for (_, cells), record in zip(frame.iterrows(), rows, strict=True):
        assert cells["any text"] == record.text
        assert int(cells["whole"]) == record.whole
        assert same(float(cells["number"]), record.number)
        assert cells["yes"] == str(record.yes)
        for name in ("wholes", "texts", "answers"):
            assert json.loads(cells[name]) == getattr(record, name)
        assert same(json.loads(cells["numbers"]), [None if math.isnan(x) else x for x in record.numbers])
        assert same(json.loads(cells["grid"]), [[None if math.isnan(x) else x for x in row] for row in record.grid])


@relaxed
@given(every)
def test_list_cells_are_strict_json(record: Every) -> None:
    cells = dict(zip(columns(Every), to_cells(record), strict=True))
    for name in ("wholes", "numbers", "texts", "answers", "grid"):
        json.loads(cells[name], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_plain_read_csv_gives_every_interpretation_column_its_type() -> None:
    rows = [interpretation(), interpretation(kind="control", current_token="", token_idx=None, layer_idx=None)]
    frame = pd.read_csv(BytesIO(csv_header(Interpretation) + to_csv(rows)))
    lists = [known.name for known in fields(Interpretation) if str(known.type).startswith("list")]
    assert len(lists) == 9
    for name in lists:
        assert [json.loads(cell) for cell in frame[name]] == [getattr(row, name) for row in rows]
    assert frame["token_idx"][0] == 4
    assert frame["token_idx"].isna().tolist() == [False, True]
    assert frame["current token"].isna().tolist() == [False, True]


def test_numbers_without_a_json_form_are_null_and_1e999() -> None:
    cells = to_cells(interpretation(interpretation_prob=[math.nan, math.inf, -math.inf, -0.0]))
    assert cells[columns(Interpretation).index("interpretation_prob")] == "[null, 1e999, -1e999, -0.0]"


def test_list_cells_stay_readable_in_any_script() -> None:
    cells = to_cells(interpretation(prompt_token_list=["▁é", "語"]))
    assert cells[columns(Interpretation).index("prompt_token_list")] == '["▁é", "語"]'


def test_numpy_and_torch_numbers_are_written_as_numbers() -> None:
    theirs = interpretation(
        token_idx=np.int64(4),
        interpretation=list(torch.tensor([3681, 338])),
        interpretation_prob=list(np.array([0.30000000000000004, 1e-7])),
        interpretation_weights=torch.tensor([0.1, 0.25], dtype=torch.float64),
    )
    assert to_cells(theirs) == to_cells(interpretation())


def test_rows_end_in_a_newline_and_only_where_a_cell_needs_them_in_quotes() -> None:
    @dataclass(frozen=True)
    class Pair:
        left: str
        right: list[int]

    assert to_csv([Pair("plain", [1]), Pair("a\rb", [1, 2])]) == b'plain,[1]\n"a\rb","[1, 2]"\n'


def test_cells_longer_than_the_csv_modules_limit_are_read_and_the_limit_is_left_alone() -> None:
    before = csv.field_size_limit()
    row = interpretation(prompt="x" * 200_000)
    assert from_csv(Interpretation, csv_header(Interpretation) + to_csv([row])) == [row]
    assert csv.field_size_limit() == before == 131_072


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("token_idx", "four", "column 'token_idx' holds int, not 'four'"),
        ("interpretation", "[1.5]", r"column 'interpretation' holds list\[int\], not '\[1.5\]'"),
        ("interpretation", "[true]", r"column 'interpretation' holds list\[int\], not '\[true\]'"),
        ("interpretation", "[1", r"column 'interpretation' holds list\[int\], not '\[1'"),
        ("interpretation", "", r"column 'interpretation' holds list\[int\], not ''"),
        ("prompt_token_list", "[1]", r"column 'prompt_token_list' holds list\[str\], not '\[1\]'"),
        ("signed_relevancy", '["a"]', r"column 'signed_relevancy' holds list\[float\], not '\[\"a\"\]'"),
    ],
)
def test_a_cell_that_is_not_of_its_column_is_named(name: str, cell: str, message: str) -> None:
    cells = to_cells(interpretation())
    cells[columns(Interpretation).index(name)] = cell
    with pytest.raises(ValueError, match=f"^{message}$"):
        from_cells(Interpretation, cells)


def test_a_bad_row_is_named() -> None:
    table = csv_header(Interpretation) + to_csv([interpretation()]) + b"short,row\n"
    with pytest.raises(ValueError, match="^row 2: a row of Interpretation has 29 cells; this one has 2$"):
        from_csv(Interpretation, table)


@pytest.mark.parametrize("table", [b"", b"a,b\n1,2\n"])
def test_a_table_of_other_columns_is_refused(table: bytes) -> None:
    with pytest.raises(
        ValueError, match=r"^row 0: the columns are \[.*\]; expected those of Interpretation, \['name', .*\]$"
    ):
        from_csv(Interpretation, table)


def test_a_table_with_an_open_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="^not a CSV table: unexpected end of data$"):
        from_csv(Interpretation, csv_header(Interpretation) + b'"open')


def test_text_that_utf8_cannot_hold_names_its_column() -> None:
    with pytest.raises(ValueError, match=r"^column 'prompt': '\\ud83d' cannot be written as UTF-8$"):
        to_cells(interpretation(prompt="\ud83d"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt", 3, "column 'prompt' holds str, not 3"),
        ("prompt", None, "column 'prompt' holds str, not None"),
        ("interpretation", [1.5], r"column 'interpretation' holds list\[int\], not \[1.5\]"),
        ("interpretation", None, r"column 'interpretation' holds list\[int\], not None"),
        ("prompt_token_list", [1], r"column 'prompt_token_list' holds list\[str\], not \[1\]"),
        ("prompt_token_list", "abc", r"column 'prompt_token_list' holds list\[str\], not 'abc'"),
    ],
)
def test_a_value_of_another_type_than_its_field_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}$"):
        to_cells(interpretation(**{name: value}))


@pytest.mark.parametrize(
    "hint", [str | None, dict[str, int], int | str, int | str | None, list[int | None], tuple[int]]
)
def test_an_annotation_without_a_form_as_a_cell_is_refused(hint: object) -> None:
    with pytest.raises(
        TypeError, match="^column 'x': a field annotated .* cannot be stored in a cell; see interpret.records.table$"
    ):
        columns(make_dataclass("Odd", [("x", hint)]))
