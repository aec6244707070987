"""Open runs: what they leave behind, and mistakes of the code that writes units."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from interpret.records import csv_header, to_csv
from interpret.storage.run_folder import read_table
from reference.small_runs import (
    IDENTITY,
    UNITS,
    Row,
    assert_ends_like,
    contents,
    manifest_of,
    opened,
    rows_of,
    work,
)

WHAT_TO_DO = "give another --output folder, or delete this one"


# What a run leaves behind


def test_table_is_header_and_rows_in_order(unbroken: dict[str, bytes]) -> None:
    rows = [row for unit in "abd" for row in rows_of(unit)]
    assert unbroken["table.csv"] == csv_header(Row) + to_csv(rows)


def test_manifest_carries_identity_circumstances_counts_and_times(unbroken: dict[str, bytes]) -> None:
    manifest = json.loads(unbroken["manifest.json"])
    assert manifest["identity"] == IDENTITY
    assert manifest["circumstances"] == {"device": "cpu"}
    assert manifest["counts"] == {"in": 4, "kept": 3, "dropped": 1, "rows": 3}
    assert manifest["dropped"] == {"c": "no answer"}
    assert manifest["status"] == "complete"
    assert manifest["continuations"] == []
    times = [manifest["started"], manifest["finished"]]
    assert times == sorted(times)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", time) for time in times)


def test_manifest_is_strict_readable_json_with_sorted_keys(unbroken: dict[str, bytes]) -> None:
    text = unbroken["manifest.json"].decode()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_manifest_says_incomplete_until_all_units_are_done(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert manifest_of(tmp_path)["status"] == "incomplete"
        work(run, until=2)
    manifest = manifest_of(tmp_path)
    assert (manifest["status"], manifest["finished"]) == ("incomplete", None)
    assert manifest["counts"] == {"in": 4, "kept": 2, "dropped": 0, "rows": 3}


def test_run_tells_what_is_done_and_what_is_left(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert (run.finished, run.pending) == ([], UNITS)
        work(run, until=3)
        assert (run.finished, run.pending) == (["a", "b", "c"], ["d"])
        assert run.dropped == {"c": "no answer"}
        assert run.counts == {"in": 4, "kept": 2, "dropped": 1, "rows": 3}


def test_a_unit_may_have_no_rows_and_is_still_kept(tmp_path: Path) -> None:
    assert rows_of("d") == []
    with opened(tmp_path, units=["d"]) as run:
        work(run)
        assert run.counts == {"in": 1, "kept": 1, "dropped": 0, "rows": 0}


def test_a_run_of_no_units_is_complete(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "folder", units=[]) as run:
        assert run.pending == []
    assert manifest_of(tmp_path / "new" / "folder")["status"] == "complete"
    assert read_table(tmp_path / "new" / "folder", Row) == []


def test_opening_a_complete_run_again_changes_no_byte(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        work(run)
    before = contents(tmp_path)
    with opened(tmp_path, circumstances={"device": "other"}) as run:
        assert run.pending == []
    assert contents(tmp_path) == before


def test_a_continued_run_records_each_circumstance(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        work(run, until=1)
    with opened(tmp_path, circumstances={"device": "cuda"}) as run:
        work(run)
    manifest = manifest_of(tmp_path)
    (again,) = manifest["continuations"]
    assert manifest["circumstances"] == {"device": "cpu"}
    assert (again["circumstances"], again["after_units"]) == ({"device": "cuda"}, 1)


def test_a_run_may_grow_by_units_at_its_end(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    with opened(tmp_path, units=UNITS[:2]) as run:
        work(run)
    assert manifest_of(tmp_path)["status"] == "complete"
    assert_ends_like(tmp_path, unbroken)


def test_identity_is_compared_as_json(tmp_path: Path) -> None:
    with opened(tmp_path, identity={"layers": (1, 2), "nested": {"b": 1, "a": None}}):
        pass
    with opened(tmp_path, identity={"nested": {"a": None, "b": 1}, "layers": [1, 2]}) as run:
        assert run.pending == UNITS


def test_odd_text_in_names_and_identity_survives(tmp_path: Path) -> None:
    odd = {"units": ["\ud83d", 'quote"\n', "\u2028"], "identity": {"prompt": "é\ud83d\n"}}
    with opened(tmp_path, **odd) as run:
        run.drop("\ud83d", "reason\n\ud83d")
    with opened(tmp_path, **odd) as run:
        assert run.pending == odd["units"][1:]
        assert run.dropped == {"\ud83d": "reason\n\ud83d"}


# Mistakes of the code that writes


def test_units_out_of_turn_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        with pytest.raises(ValueError, match="^unit 'b' is out of order; the next unit is 'a'$"):
            run.write("b", rows_of("b"))
        work(run)
        with pytest.raises(ValueError, match="^unit 'a' is out of order; the next unit is None$"):
            run.drop("a", "again")


def test_a_closed_run_takes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        pass
    with pytest.raises(ValueError, match=": this Run is closed; open the folder again with open_run$"):
        run.write("a", rows_of("a"))


def test_a_record_of_another_type_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path) as run,
        pytest.raises(TypeError, match="^unit 'a': expected records of type Row, got 'a row'$"),
    ):
        run.write("a", ["a row"])


def test_work_that_fails_half_way_through_a_unit_writes_nothing_of_it(tmp_path: Path) -> None:
    def failing() -> Iterator[Row]:
        yield from rows_of("b")
        raise ZeroDivisionError

    with opened(tmp_path) as run:
        before = contents(tmp_path)
        with pytest.raises(ZeroDivisionError):
            run.write("a", failing())
        assert contents(tmp_path) == before
        assert run.pending == UNITS


@pytest.mark.parametrize("which", ["identity", "circumstances"])
def test_numbers_that_are_no_json_are_refused_before_anything_is_written(tmp_path: Path, which: str) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"), opened(tmp_path, **{which: {"x": float("nan")}}):
        pytest.fail("the run was opened")
    assert all(content == b"" for content in contents(tmp_path).values())
