"""Every reader, with files of any content: one short message or a result, after a bounded amount of work."""

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interpret.activations.cache_files import load as load_cache
from interpret.attribution.result.files import load as load_attribution
from interpret.attribution.result.files import save
from interpret.attribution.result.scores import Attributed, AttributionInfo, AttributionScores
from interpret.bench.log import read_version, versions
from interpret.errors import InputError, RunError
from interpret.facts.files import load_facts
from interpret.facts.pairs import load_pairs
from interpret.prompts.prompts import load_examples
from interpret.records import TraceCell, csv_header, to_csv
from interpret.storage.opening import open_run
from interpret.storage.run_folder import read_run, read_table, read_units
from interpret.tracing.config import load_config
from interpret.work.inputs import read_options
from reference.messages import TooMuchWorkError, at_most_calls, one_message_at_most
from reference.trace_rows import cells

CELL = cells([[0.5]], span=(0, 1))[0]
# A log whose last line was cut off is read up to there, with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*skipped an incomplete last line")
FACT = {"known_id": 7, "subject": "Lake Como", "attribute": "Italy", "prompt": "Lake Como is in", "template": "{} is"}
ZSRE = {"src": "Where is Rome?", "subject": "Rome", "answers": ["Italy", "Europe"], "alt": "Peru"}
REWRITE = {"prompt": "{} is in", "subject": "Rome", "target_true": {"str": "Italy"}, "target_new": {"str": "Peru"}}


@dataclass(frozen=True)
class Reader:
    """A reader, and a valid document that it reads."""

    read: Callable[[Path], Any]
    document: Any
    """A JSON value, or a list of such, one per line."""
    name: str = "file.json"
    lines: bool = False
    """Whether the file has one JSON value per line."""
    around: Callable[[Path], None] = lambda folder: None
    """Makes the other files of the folder."""

    def write(self, folder: Path, content: bytes) -> Path:
        """Write the file among the others of its folder, and return what is read."""
        self.around(folder)
        (folder / self.name).write_bytes(content)
        return folder / self.name


def as_table(document: Any, delimiter: str) -> str:
    """Return the dicts of a document as a table; cells that are no texts are JSON."""
    rows = [row for row in document if isinstance(row, dict)] if isinstance(document, list) else []
    header = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [row[key] if isinstance(row.get(key), str) else json.dumps(row.get(key)) for key in header] for row in rows
    ]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *cells])
    return text.getvalue().encode("utf-8", "replace").decode()


def as_text(reader: Reader, document: Any) -> str:
    if reader.name.endswith((".csv", ".tsv")):
        return as_table(document, "," if reader.name.endswith(".csv") else "\t")
    if reader.name.endswith(".txt"):
        return f"{document}".encode("utf-8", "replace").decode()
    if not reader.lines:
        return json.dumps(document)
    return "".join(json.dumps(line) + "\n" for line in (document if isinstance(document, list) else [document]))


def make_run(folder: Path) -> None:
    if (folder / "table.csv").exists():
        return
    with open_run(folder, TraceCell, identity={"command": "trace"}, circumstances={}, units=["a", "b", "c"]) as run:
        run.write("a", [CELL])
        run.drop("b", "bad row: row 1")


def read_all_of_a_run(path: Path) -> None:
    """Read a run by each function, so that a file that one of them refuses is read by the next."""
    folder = path.parent
    for read in (
        lambda: read_run(folder).to_frame(),
        lambda: read_run(folder).units,
        lambda: read_run(folder).dropped,
        lambda: read_run(folder, TraceCell).records(),
        lambda: list(read_units(folder, TraceCell)),
        lambda: read_table(folder, TraceCell),
    ):
        with one_message_at_most():
            read()
    with (
        one_message_at_most(lines=20),
        open_run(folder, TraceCell, identity={"command": "trace"}, circumstances={}, units=["a", "b", "c"]),
    ):
        pass


def manifest() -> dict[str, Any]:
    counts = {"in": 3, "kept": 1, "dropped": 1, "rows": 1}
    return {
        "format": "llm-interpret run, format 1", "identity": {"command": "trace"}, "circumstances": {},
        "counts": counts, "dropped": {"b": "bad row: row 1"}, "continuations": [], "status": "incomplete",
        "started": "x", "finished": None,
    }  # fmt: skip


JOURNAL = [
    {"unit": "a", "rows": 1, "size": 400, "crc32": 7, "dropped": None},
    {"unit": "b", "rows": 0, "size": 400, "crc32": 0, "dropped": "bad row: row 1"},
]
SCORES = {"dtype": "float32", "shape": [2, 1], "values": [0.5, None]}
ATTRIBUTION = {
    "format": "interpret.attribution", "version": 2,
    "info": {"method": "saliency", "attributed_fn": "probability", "unit": "", "contrast": None, "step_units": {},
             "step_aggregates": {}, "model": "m", "tokenizer": "t", "options": {"n": 1}, "aggregation": []},
    "sequences": [{"tokens": ["a", "b"], "token_ids": [1, 2], "words": [0, 1], "n_prompt": 1,
                   "start": 1, "stop": 2, "scores": SCORES,
                   "layer_scores": {}, "step_scores": {}, "details": {}, "foil_tokens": None, "source_tokens": None,
                   "source_ids": None, "source_words": None, "source_scores": None}],
}  # fmt: skip
LOG = {
    "format": 1, "function": "log", "version": "v", "time": "x", "seconds": 1.5, "arguments": {"a": [1, 2]},
    "result": {"$": "tensor", "dtype": "float32", "shape": [2], "values": [1.0, 2.0]}, "source": "def log(): ...",
    "model": {"name": "m"}, "libraries": {"torch": "2"}, "torch_seed": 3,
}  # fmt: skip
CACHE = {"format": 1, "names": ["resid_post.0"], "batches": 1, "token_ids": [[1, 2], [3]]}


def read_log(path: Path) -> None:
    versions(path.parent, "log")
    read_version(path.parent, "log", "v")


READERS = {
    "prompts": Reader(load_examples, {"examples": [{"prompt": "Rome is", "category": "a", "subject": "Rome"}] * 2}),
    "facts": Reader(load_facts, [FACT, {"requested_rewrite": REWRITE}]),
    "fact lines": Reader(load_facts, [FACT, {"requested_rewrite": REWRITE}], "file.jsonl", lines=True),
    "prompt lines": Reader(load_examples, [{"prompt": "Rome is", "target": "in"}] * 2, "file.jsonl", lines=True),
    "prompt table": Reader(load_examples, [{"prompt": "Rome is", "subject": "Rome", "raw": True}] * 2, "file.csv"),
    "prompt text": Reader(load_examples, "Rome is\nOslo is", "file.txt"),
    "fact table": Reader(load_facts, [FACT | {"occurrence": 0}], "file.tsv"),
    "data set table": Reader(load_facts, [ZSRE, ZSRE | {"answers": ["Italy"]}], "file.csv"),
    "pair table": Reader(load_pairs, [{"true": "Rome is in Italy.", "false": "Rome is in Peru."}], "file.tsv"),
    "pairs": Reader(load_pairs, {"pairs": [{"true": "Rome is in Italy.", "false": "Rome is in Peru."}]}),
    "config": Reader(
        load_config,
        {
            "model": {"pth": "demo"},
            "noise": "s3",
            "samples": 3,
            "mediators": ["hidden"],
            "output": "x",
            "replace": True,
        },
        "file.yaml",
    ),
    "attribution": Reader(load_attribution, ATTRIBUTION),
    "manifest": Reader(read_all_of_a_run, manifest(), "manifest.json", around=make_run),
    "journal": Reader(read_all_of_a_run, JOURNAL, "progress.jsonl", lines=True, around=make_run),
    "cache": Reader(lambda path: load_cache(path.parent), CACHE, "cache.json"),
    "log": Reader(read_log, [LOG], "log.jsonl", lines=True),
    "options": Reader(lambda path: read_options([f"n_steps={path.read_text(errors='replace')}"]), 20),
}

# ------------------------------------------------------------------------------------------------ hostile content

DEEP, LONG_NUMBER = "[" * 200_000, "1" * 5000
ODD: list[Any] = [
    None, True, -1, 0, 3.5, math.nan, math.inf, 2**63, 10**400, "", " ", "\ud800", "\0", "a\u2028b", "x" * 100_000,
    [], {}, [1], [[1]], ["a", None], {"a": 1}, {"str": 3}, {"dtype": "float32"}, {"$": "tensor"}, {"$": []},
    [[[[[[[[]]]]]]]], list(range(500)), {str(number): number for number in range(500)},
]  # fmt: skip
RAW = {
    "nothing": "", "space": " \n ", "deep lists": DEEP, "deep objects": '{"a":' * 100_000,
    "closed deep lists": "[" * 20_000 + "]" * 20_000, "a long number": LONG_NUMBER, "NaN": "NaN", "a mark": "\ufeff",
    "NUL": "\0", "half a pair": '"\\ud800"', "two documents": "{}\n---\n{}", "an empty name": '{"": 1}',
}  # fmt: skip
YAML = {
    "a tag": "seed: !!int abc", "a date": "samples: 2024-01-31", "a date as text": "output: 2024-01-31",
    "nested lists": "mediators: " + "[" * 20_000, "dashes": "- " * 20_000, "an anchor in itself": "mediators: &a [*a]",
    "aliases": "x: &a [h,h,h,h,h,h,h,h,h]\n" + "".join(
        f"x{n}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)),
    "merged aliases": "x: &a {h: 1, i: 2}\n" + "".join(
        f"x{n}: &{chr(98 + n)} {{<<: [{','.join([f'*{chr(97 + n)}'] * 9)}]}}\n" for n in range(12)),
    "aliases in a value": "noise: &a [h,h]\nsamples: [" + ",".join(["*a"] * 5000) + "]", "binary": "noise: !!binary x",
    "hexadecimal": "seed: 0x" + "f" * 5000, "base 60": "seed: " + ":".join(["10"] * 5000),
    "python": "a: !!python/name:os", "a long escape": 'a: "\\UFFFFFFFF"', "a set": "noise: !!set {a, b}",
    "no key": "? [a]\n: b", "a merge": "<<: 3",
    "many keys": "\n".join(f"k{number}: 1" for number in range(20_000)), "a long seed": f"seed: {LONG_NUMBER}",
    "a long tag": f"a: !<{'x' * 100_000}> 1", "a directive": "%YAML 9.9\n---\na: 1", "infinity": "samples: .inf",
}  # fmt: skip


@pytest.mark.parametrize("kind", READERS)
def test_the_document_is_read(kind: str, tmp_path: Path) -> None:
    reader = READERS[kind]
    if kind == "journal":  # the one that belongs to the table
        make_run(tmp_path)
        reader.read(tmp_path / reader.name)
    else:
        reader.read(reader.write(tmp_path, as_text(reader, reader.document).encode()))


def read_within_bounds(reader: Reader, folder: Path, content: bytes, calls: int = 1_000_000) -> None:
    path = reader.write(folder, content)
    with one_message_at_most(), at_most_calls(calls):
        reader.read(path)


@pytest.mark.parametrize("content", RAW)
@pytest.mark.parametrize("kind", READERS)
def test_hostile_content_is_one_message(kind: str, content: str, tmp_path: Path) -> None:
    read_within_bounds(READERS[kind], tmp_path, RAW[content].encode("utf-8"))


@pytest.mark.parametrize("content", YAML)
def test_hostile_yaml_is_one_message(content: str, tmp_path: Path) -> None:
    read_within_bounds(READERS["config"], tmp_path, YAML[content].encode("utf-8"), calls=3_000_000)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in items for place in places(item, (*at, key)))]


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    whole = deepcopy(document)
    parent = whole
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return whole


@pytest.mark.parametrize("kind", READERS)
def test_every_value_of_a_document_may_be_anything(kind: str, tmp_path: Path) -> None:
    reader = READERS[kind]
    for number, place in enumerate(places(reader.document)):
        for value in ODD[number % 3 :: 3]:  # each place gets a third of the values, for the sake of time
            text = as_text(reader, replaced(reader.document, place, value))
            read_within_bounds(reader, tmp_path, text.encode())


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(ODD)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_changed_documents_are_read_or_refused(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reader = READERS[kind]
    document = reader.document
    for _ in range(data.draw(st.integers(1, 3))):
        document = replaced(document, data.draw(st.sampled_from(places(document))), data.draw(VALUES))
    content = bytearray(as_text(reader, document).encode())
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=2)):
        content[at % max(1, len(content)) : at % max(1, len(content)) + 1] = bytes([byte])
    read_within_bounds(reader, tmp_path_factory.mktemp("fuzz"), bytes(content))


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=8)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(kind: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    read_within_bounds(READERS[kind], tmp_path_factory.mktemp("bytes"), content)


# ----------------------------------------------------------------------------------------------------- work


@pytest.mark.parametrize("kind", ["prompts", "facts", "pairs"])
def test_the_work_grows_no_faster_than_the_number_of_keys(kind: str, tmp_path: Path) -> None:
    def calls(n_keys: int) -> int:
        reader = READERS[kind]
        row = {f"promp{number}": 1 for number in range(n_keys)}
        place = next(place for place in places(reader.document) if place and place[-1] == 0)
        path = reader.write(tmp_path, as_text(reader, replaced(reader.document, place, row)).encode())
        for limit in (2**power for power in range(10, 24)):
            try:
                with one_message_at_most(), at_most_calls(limit):
                    reader.read(path)
            except TooMuchWorkError:
                continue
            return limit
        raise TooMuchWorkError

    assert calls(20_000) <= 16 * calls(2_000)


def test_a_count_of_calls_ends_the_work() -> None:
    def count_to(end: int) -> int:
        return sum(len("a") for _ in range(end))

    with at_most_calls(1000):
        assert count_to(100) == 100
    with pytest.raises(TooMuchWorkError), at_most_calls(1000):
        count_to(10_000)


# ------------------------------------------------------------------------------------------------- other files


@pytest.mark.parametrize("content", [b"", b"\0" * 10, b'"', b"a,b\n1,2\n", b"\xff\xfe", b"\xef\xbb\xbf"])
def test_a_table_of_any_bytes_is_one_message(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(RunError):
        read_table(tmp_path / "table.csv", TraceCell)
    with one_message_at_most():
        read_table(tmp_path / "table.csv", TraceCell)


@pytest.mark.parametrize("value", [DEEP, LONG_NUMBER, "NaN", "\ud800", str(2**63), "[", "1e999", "x" * 100_000, "None"])
def test_a_cell_of_any_text_is_one_message(value: str, tmp_path: Path) -> None:
    header = csv_header(TraceCell).decode()
    cells = to_csv([CELL]).decode().rstrip("\n").split(",")
    for number in range(len(cells)):
        row = ",".join([*cells[:number], value, *cells[number + 1 :]])
        (tmp_path / "table.csv").write_bytes(f"{header}{row}\n".encode("utf-8", "surrogatepass"))
        with one_message_at_most(), at_most_calls(1_000_000):
            read_table(tmp_path / "table.csv", TraceCell)


@pytest.mark.parametrize("kind", sorted(READERS.keys() - {"options"}))
def test_a_pipe_and_a_device_are_refused(kind: str, tmp_path: Path) -> None:
    """Reading a pipe without a writer would never begin, and reading /dev/zero would never end."""
    reader = READERS[kind]
    reader.around(tmp_path)
    path = tmp_path / reader.name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with one_message_at_most():
        reader.read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with one_message_at_most():
        reader.read(path)


def test_a_pipe_is_named_for_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "facts.json")
    with pytest.raises(InputError, match=r"facts\.json cannot be read: it is a pipe or a device; save its content in"):
        load_facts(tmp_path / "facts.json")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.yaml").write_text("# " + "x" * 1_000_000)
    with pytest.raises(InputError, match="has more than 1,000,000 bytes; is it a YAML file like examples/trace.yaml"):
        load_config(tmp_path / "trace.yaml")


def test_a_table_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbf" + csv_header(TraceCell) + to_csv([CELL]))
    assert read_table(tmp_path / "table.csv", TraceCell) == [CELL]


def test_a_compressed_file_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpret.attribution.result.files._LARGEST", 2**20)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b" " * 2**24 + b"]"))
    with pytest.raises(InputError, match=r"a\.json\.gz cannot be read: it has more than 1048576 bytes"):
        load_attribution(tmp_path / "a.json.gz")


@settings(deadline=None, max_examples=50)
@given(content=st.binary(max_size=100))
def test_a_damaged_gzip_file_is_one_message(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("gz") / "a.json.gz"
    for data in (b"\x1f\x8b" + content, gzip.compress(content), gzip.compress(content)[:-3]):
        path.write_bytes(data)
        with one_message_at_most():
            load_attribution(path)


def test_the_document_of_an_attribution_is_what_is_saved(tmp_path: Path) -> None:
    one = Attributed(("a", "b"), (1, 2), (0, 1), 1, 1, 2, np.array([[0.5], [np.nan]], dtype=np.float32))
    info = AttributionInfo("saliency", "probability", "", None, {}, {}, "m", "t", {"n": 1})
    path = save(AttributionScores([one], info), tmp_path / "a.json")
    assert json.loads(path.read_text()) == ATTRIBUTION


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "no\nwhere", "/tmp", "\ud800", ""], ids=ascii)
def test_any_path_is_one_message(path: str) -> None:
    for read in (load_examples, load_facts, load_pairs, load_config, load_attribution, load_cache, read_run):
        with pytest.raises((InputError, RunError)):
            read(path)  # type: ignore[operator]
        with one_message_at_most():
            read(path)  # type: ignore[operator]
    with one_message_at_most():
        read_table(path, TraceCell)
