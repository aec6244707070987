"""Run folders: what is in them, what is refused, and how they are read."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from interpret.errors import RunError
from interpret.records import Interpretation, csv_header, to_csv
from interpret.storage.disk import replace_whole
from interpret.storage.run_folder import read_run, read_table, read_units
from reference.small_runs import (
    IDENTITY,
    UNITS,
    Row,
    assert_ends_like,
    contents,
    finish,
    manifest_of,
    opened,
    rows_of,
    unbroken_run,
    work,
    worker,
)

WHAT_TO_DO = "give another --output folder, or delete this one"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return unbroken_run(tmp_path_factory.mktemp("unbroken"))


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


def test_manifest_says_running_until_all_units_are_done(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert manifest_of(tmp_path)["status"] == "running"
        work(run, until=2)
    manifest = manifest_of(tmp_path)
    assert (manifest["status"], manifest["finished"]) == ("running", None)
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


# Refused


def refused(folder: Path, message: str, **changes: Any) -> None:
    """Opening says exactly ``message``, and touches nothing."""
    before = contents(folder) if folder.is_dir() else None
    with pytest.raises(RunError) as caught, opened(folder, **changes):
        pytest.fail("the run was opened")
    assert str(caught.value) == message
    assert (contents(folder) if folder.is_dir() else None) == before


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run with two of four units done, and the next one cut off in both files."""
    with opened(tmp_path) as run:
        work(run, until=2)
    for name in ("table.csv", "progress.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"half')
    return tmp_path


def test_another_identity_is_refused_key_by_key(half: Path) -> None:
    refused(
        half,
        f"{half} contains another run:\n"
        '  dtype: not set in the folder, "float32" now\n'
        "  layers: [1, 2] in the folder, [1] now\n"
        '  model.sha256: "00ff" in the folder, "00fe" now\n'
        "  seed: 7 in the folder, not set now\n" + WHAT_TO_DO,
        identity={"model": {"name": "tiny", "sha256": "00fe"}, "layers": [1], "dtype": "float32"},
    )


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (["a", "x", "c", "d"], "unit 1 is 'b' in the folder, 'x' now"),
        (["b", "a", "c", "d"], "unit 0 is 'a' in the folder, 'b' now"),
        (["a"], "unit 1 is 'b' in the folder, None now"),
    ],
)
def test_other_units_are_refused(half: Path, units: list[str], message: str) -> None:
    refused(half, f"{half} contains another run: {message}; {WHAT_TO_DO}", units=units)


def test_a_unit_listed_twice_is_refused(tmp_path: Path) -> None:
    message = "the unit 'a' is listed twice; the units of a run need unique names"
    refused(tmp_path / "new", message, units=["a", "b", "a"])
    assert not (tmp_path / "new").exists()


def test_a_table_without_manifest_is_refused(half: Path) -> None:
    (half / "manifest.json").unlink()
    refused(half, f"{half} has a table.csv but no manifest.json, so its run is unknown; {WHAT_TO_DO}")


def test_a_manifest_without_journal_is_refused(half: Path) -> None:
    (half / "progress.jsonl").unlink()
    refused(half, f"{half} has a manifest.json but no progress.jsonl, so the run cannot be resumed; {WHAT_TO_DO}")


def test_a_folder_of_other_files_is_used_beside_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with opened(tmp_path) as run:
        work(run)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["{}", "[]", "{", "", '{"format": "llm-interpret run, format 2"}'])
def test_a_manifest_of_something_else_is_refused(half: Path, text: str) -> None:
    (half / "manifest.json").write_text(text)
    refused(
        half, f"{half / 'manifest.json'} is not the manifest of a run, or was written by a newer version; {WHAT_TO_DO}"
    )


@pytest.mark.parametrize("line", ["{}", "nonsense", '["a"]', '{"unit": "a"}'])
def test_a_journal_line_of_something_else_is_refused(half: Path, line: str) -> None:
    lines = (half / "progress.jsonl").read_text().splitlines(keepends=True)
    (half / "progress.jsonl").write_text("".join([lines[0], line + "\n", *lines[1:]]))
    refused(half, f"{half / 'progress.jsonl'}: line 2 is not a valid entry; {WHAT_TO_DO}")


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": 10**30},
        {"size": "12"},
        {"size": 12.5},
        {"size": True},
        {"size": None},
        {"size": 0},
        {"rows": -1},
        {"rows": "1"},
        {"crc32": None},
        {"unit": 1},
        {"dropped": 1},
        {"more": 1},
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_journal_line_with_impossible_numbers_is_refused(half: Path, change: dict[str, Any], number: int) -> None:
    path = half / "progress.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()[:2]]
    lines[number - 1] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(half, f"{path}: line {number} is not a valid entry; {WHAT_TO_DO}")
    if change != {"size": 0}:
        with pytest.raises(RunError, match=f"line {number} is not a valid entry"):
            read_table(half, Row)


def test_a_size_beyond_the_table_is_refused_without_reading_that_much(half: Path) -> None:
    path = half / "progress.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines()[:2])
    path.write_text(json.dumps(first) + "\n" + json.dumps(second | {"size": 2**62}) + "\n")
    refused(half, f"{half / 'table.csv'} was changed after unit 'b' was written; {WHAT_TO_DO}")


def test_a_journal_line_nested_too_deeply_is_refused(half: Path) -> None:
    (half / "progress.jsonl").write_text("[" * 200_000 + "\n")
    refused(half, f"{half / 'progress.jsonl'}: line 1 is not a valid entry; {WHAT_TO_DO}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identity", None),
        ("identity", []),
        ("counts", None),
        ("counts", {"in": 4, "kept": "2", "dropped": 0, "rows": 1}),
        ("circumstances", None),
        ("dropped", None),
        ("continuations", 1),
        ("finished", 1),
    ],
)
def test_a_manifest_without_what_is_needed_is_refused(half: Path, key: str, value: Any) -> None:
    path = half / "manifest.json"
    path.write_text(json.dumps({**manifest_of(half), key: value}))
    message = f"{path} is damaged: {key!r} is {value}; {WHAT_TO_DO}"
    refused(half, message)
    with pytest.raises(RunError) as caught:
        read_run(half, Row)
    assert str(caught.value) == message
    if value is None:
        path.write_text(json.dumps({name: one for name, one in manifest_of(half).items() if name != key}))
        refused(half, message)


@pytest.mark.parametrize("name", ["table.csv", "progress.jsonl", "unfinished.jsonl", "grids", "peaks.csv"])
@pytest.mark.parametrize("text", ["mine", "mine\n", '{"unit": "a", "rows": 0}\n'])
def test_a_foreign_file_is_refused_and_not_changed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    message = f"{tmp_path} has a {name} but no manifest.json, so its run is unknown; {WHAT_TO_DO}"
    refused(tmp_path, message, others=["grids", "peaks.csv"])
    assert contents(tmp_path) == {name: text.encode()}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", ["manifest.json", "table.csv", "progress.jsonl", "unfinished.jsonl", "grids"])
def test_a_link_in_the_place_of_a_file_is_refused_and_not_followed(
    tmp_path: Path, name: str, there: bool, begun: bool
) -> None:
    folder, target = tmp_path / "run", tmp_path / "mine"
    if begun:
        with opened(folder) as run:
            work(run, until=2)
        (folder / name).unlink(missing_ok=True)
    else:
        folder.mkdir()
    if there:
        target.write_text("")
    (folder / name).symlink_to(target)
    message = f"{folder / name} is not a plain file, so a run would write to another place; {WHAT_TO_DO}"
    with pytest.raises(RunError) as caught, opened(folder, others=["grids"]):
        pytest.fail("the run was opened")
    assert str(caught.value) == message
    assert target.exists() == there
    assert not there or target.read_text() == ""


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("manifest.json", "peaks.csv"):
        (tmp_path / "run" / f".{name}.tmp").symlink_to(target)
    with opened(tmp_path / "run") as run:
        work(run)
    replace_whole(tmp_path / "run" / "peaks.csv", b"peaks")
    assert target.read_text() == "mine"
    assert sorted(contents(tmp_path / "run")) == ["manifest.json", "peaks.csv", "progress.jsonl", "table.csv"]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to write raises the error of a read-only disk."""
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *more, **options)

    def refused_write(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for name in ("write_bytes", "replace", "unlink", "touch"):
        monkeypatch.setattr(Path, name, refused_write)


def test_a_finished_run_is_opened_on_a_read_only_disk(
    tmp_path: Path, unbroken: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    with opened(tmp_path) as run:
        work(run)
    replace_whole(tmp_path / "peaks.csv", b"peaks")
    request.getfixturevalue("read_only")
    with opened(tmp_path) as run:
        assert (run.pending, run.counts["kept"]) == ([], 3)
    replace_whole(tmp_path / "peaks.csv", b"peaks")  # the same contents
    with pytest.raises(RunError, match="peaks.csv cannot be written: Read-only file system"):
        replace_whole(tmp_path / "peaks.csv", b"others")


def test_an_unfinished_run_on_a_read_only_disk_is_refused(half: Path, read_only: None) -> None:
    refused(half, f"{half} cannot be written, and its run is not finished; copy it to a writable disk")


def test_a_journal_that_lost_lines_is_refused(half: Path) -> None:
    (half / "progress.jsonl").write_bytes(b"")
    refused(half, f"{half / 'progress.jsonl'} has fewer lines than manifest.json counts units; {WHAT_TO_DO}")


def edit(folder: Path, change: Callable[[bytes], bytes]) -> None:
    (folder / "table.csv").write_bytes(change((folder / "table.csv").read_bytes()))


@pytest.mark.parametrize(
    ("change", "unit"),
    [
        (lambda table: table.replace("é0".encode(), b"eh0", 1), "a"),
        (lambda table: table.replace(b'"""b""', b'"""x""', 1), "b"),
        (lambda table: table[:-20], "b"),
        (lambda table: table[:26], "a"),
    ],
)
def test_a_table_edited_by_hand_is_refused(half: Path, change: Callable[[bytes], bytes], unit: str) -> None:
    before = (half / "table.csv").read_bytes()
    edit(half, change)
    assert (half / "table.csv").read_bytes() != before
    refused(half, f"{half / 'table.csv'} was changed after unit {unit!r} was written; {WHAT_TO_DO}")


@pytest.mark.parametrize("done", [0, 2])
def test_a_table_with_another_header_is_refused(tmp_path: Path, done: int) -> None:
    with opened(tmp_path) as run:
        work(run, until=done)
    edit(tmp_path, lambda table: b"U" + table[1:])
    refused(tmp_path, f"{tmp_path / 'table.csv'}: its header is not that of this version; {WHAT_TO_DO}")


def test_a_table_deleted_after_units_were_written_is_refused(half: Path) -> None:
    (half / "table.csv").unlink()
    refused(half, f"{half / 'table.csv'}: cannot open or close the run: No such file or directory")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", f"{tmp_path / 'file'}: cannot open or close the run: File exists")


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    message = f"{tmp_path} is being written by another process; wait for it or stop it"
    with opened(tmp_path) as run:
        refused(tmp_path, message)
        with worker(tmp_path, 3) as process:
            assert finish(process) == ([], f"interpret.errors.RunError: {message}")
        work(run)
    with opened(tmp_path) as run:
        assert run.pending == []


def test_the_lock_is_given_back_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path):
        raise ZeroDivisionError
    left = [link for link in Path("/proc/self/fd").iterdir() if in_folder(link, tmp_path)]
    assert left == [], "a descriptor was left open"
    with FileLock(tmp_path / ".progress.jsonl.lock", timeout=0):
        pass


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".progress.jsonl.lock").symlink_to(tmp_path / "mine")
    refused(tmp_path / "run", f"{tmp_path / 'run' / '.progress.jsonl.lock'} is a link, not a lock file; remove it")
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_lock_is_given_back_even_while_a_child_holds_its_descriptor(tmp_path: Path) -> None:
    with opened(tmp_path):
        held = [os.dup(int(link.name)) for link in Path("/proc/self/fd").iterdir() if in_folder(link, tmp_path)]
    assert held
    with opened(tmp_path) as run:
        assert run.pending == UNITS
    for descriptor in held:
        os.close(descriptor)


def in_folder(descriptor: Path, folder: Path) -> bool:
    """Whether a link of /proc/self/fd points into a folder."""
    return descriptor.exists() and descriptor.readlink().is_relative_to(folder)


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


# Reading


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
