"""Run folders are read unit by unit, also while they are written."""

import re
from pathlib import Path

import pytest

from interpret.errors import RunError
from interpret.records import Interpretation, csv_header
from interpret.storage.run_folder import read_run, read_table, read_units
from reference.small_runs import (
    Row,
    opened,
    refused,
    rows_of,
    work,
)

WHAT_TO_DO = "give another --output folder, or delete this one"


def test_a_table_is_read_while_it_is_written_whole_units_only(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert read_table(tmp_path, Row) == []
        work(run, until=2)
        with (tmp_path / "table.csv").open("ab") as file:
            file.write(b'half,"a row')
        for place in (tmp_path, str(tmp_path), tmp_path / "table.csv"):
            assert read_table(place, Row) == rows_of("a") + rows_of("b")


def test_units_are_read_one_by_one_while_the_run_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert list(read_units(tmp_path, Row)) == []
        work(run)
        with (tmp_path / "table.csv").open("ab") as file:
            file.write(b'half,"a row')
        assert list(read_units(tmp_path, Row)) == [rows_of("a"), rows_of("b")], "c is dropped, d has no rows"


def test_units_that_cannot_be_read_name_the_table(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"table\.csv: cannot be read: No such file or directory$"):
        list(read_units(tmp_path, Row))
    with opened(tmp_path) as run:
        work(run)
    with pytest.raises(RunError, match=r"table\.csv is not a table of Interpretation records$"):
        list(read_units(tmp_path, Interpretation))


def test_a_table_on_its_own_is_read_whole(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    (tmp_path / "mine.csv").write_bytes(unbroken["table.csv"])
    (tmp_path / "progress.jsonl").write_bytes(b"")
    assert read_table(tmp_path / "mine.csv", Row) == [row for unit in "abd" for row in rows_of(unit)]


def test_reading_what_is_not_there_names_it(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "table.csv"):
        with pytest.raises(RunError) as caught:
            read_table(place, Row)
        assert str(caught.value) == f"{tmp_path / 'table.csv'}: cannot be read: No such file or directory"


def test_reading_another_kind_of_table_names_its_columns(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    (tmp_path / "mine.csv").write_bytes(unbroken["table.csv"])
    columns = (
        r"row 0: the columns are \['unit', 'text', 'scores'\]; expected those of Interpretation, \['name', .*'kind'\]"
    )
    with pytest.raises(RunError, match=f"^{re.escape(str(tmp_path / 'mine.csv'))}: {columns}$"):
        read_table(tmp_path / "mine.csv", Interpretation)


def test_reading_a_run_of_another_command_is_one_line(tmp_path: Path) -> None:
    with opened(tmp_path, identity={"command": "trace"}) as run:
        work(run)
    message = f"{tmp_path} is a run of 'interpret trace', not of 'interpret selfie'; use 'interpret figures'"
    for read in (
        lambda: read_table(tmp_path, Interpretation),
        lambda: read_table(tmp_path / "table.csv", Interpretation),
        lambda: list(read_units(tmp_path, Interpretation)),
        lambda: read_run(tmp_path, Interpretation).records(),
    ):
        with pytest.raises(RunError) as caught:
            read()
        assert str(caught.value) == message
    refused(
        tmp_path,
        f"{tmp_path} contains a run of 'interpret trace', not of 'interpret selfie'; {WHAT_TO_DO}",
        identity={"command": "selfie", "layers": [1]},
    )


def test_reading_a_damaged_cell_names_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(csv_header(Row) + b"a,b,[1]\na,b,[1\n")
    with pytest.raises(RunError) as caught:
        read_table(tmp_path / "mine.csv", Row)
    assert str(caught.value) == f"{tmp_path / 'mine.csv'}: row 2: column 'scores' holds list[float], not '[1'"


def test_a_unit_can_be_written_from_a_generator(tmp_path):
    with opened(tmp_path) as run:
        run.write("a", (row for row in rows_of("a")))
        assert run.counts["rows"] == len(rows_of("a")) > 0
    assert read_table(tmp_path, Row) == rows_of("a")
