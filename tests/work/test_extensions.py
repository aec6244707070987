"""Extensions: files given by ``--import`` and packages with an entry point, in help, in runs and in manifests."""

import importlib.metadata
import json
import re
import subprocess
import sys
from hashlib import sha256

import pytest

from interpret.attribution.methods.registry import METHODS
from interpret.errors import InputError
from interpret.probing.registry import PROBES, Probe, register_probe
from interpret.records import LensReading
from interpret.storage.manifest import read_manifest
from interpret.storage.run_folder import read_run
from interpret.tracing.mediators import MEDIATORS
from interpret.work.extensions import GROUP, load_extensions, recorded
from reference.commands import fact_rows, json_file, run

MEDIATOR = """
from interpret.tracing import Mediator, register_mediator
from interpret.tracing.mediators import Pin

register_mediator(Mediator("both_severed", "a layer's output, with attention and MLP severed", "resid_post",
                           pins=(Pin("attn_out"), Pin("mlp_out"))))
"""
PROBE = """
from dataclasses import dataclass

from interpret.probing import Probe, register_probe


@dataclass(frozen=True)
class Length:
    name: str
    token_idx: int
    lengths: list[int]
    share: float


def read(model, tokenizer, *, times=1):
    def rows(asked):
        n = len(asked.tokens.ids)
        return [Length(asked.name, at, [n * times], at / n) for at in asked.positions]
    return rows


register_probe(Probe("length", "how long the prompts are", Length, read))
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What a test registers goes with it, and files are run anew."""
    before = [(one, dict(one)) for one in (MEDIATORS, METHODS, PROBES)]
    monkeypatch.setattr("interpret.work.extensions._RUN", set())
    yield
    for registry, rows in before:
        registry.clear()
        registry.update(rows)


@pytest.fixture
def facts(tmp_path):
    return json_file(tmp_path / "facts.json", fact_rows(1))


@pytest.fixture
def examples(tmp_path):
    entries = [{"prompt": "I love pizza", "category": "c", "raw": True}]
    return json_file(tmp_path / "examples.json", {"examples": entries})


def file_of(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def traced(model_folder, facts, output, *more):
    quick = ["--samples", "1", "--no-filter", "--device", "cpu"]
    return run("trace", *more, "--facts", facts, "--model", model_folder, "--output", output, *quick)


def test_a_users_mediator_is_in_the_help_whatever_stands_where(tmp_path):
    mine = file_of(tmp_path, MEDIATOR)
    for words in (["--import", mine, "--help"], ["--help", f"--import={mine}"]):
        command = [sys.executable, "-m", "interpret", "trace", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        shown = " ".join(done.stdout.split())
        assert "both_severed: a layer's output, with attention and MLP severed" in shown
        assert done.stderr == ""


def test_a_run_records_what_was_imported(model_folder, facts, tmp_path, capsys):
    mine = file_of(tmp_path, MEDIATOR)
    asked = ("--import", mine, "--mediator", "both_severed")
    assert traced(model_folder, facts, tmp_path / "run", *asked) == 0
    manifest = read_manifest(tmp_path / "run")
    digest = sha256(mine.read_bytes()).hexdigest()
    assert manifest["identity"]["imports"] == {"mine.py": f"sha256 {digest}"}
    assert manifest["circumstances"]["imports"] == [str(mine)]
    assert {row.mediator for row in read_run(tmp_path / "run").records()} == {"both_severed"}
    assert traced(model_folder, facts, tmp_path / "run", *asked) == 0
    assert "1 of 1 facts are already done" in capsys.readouterr().err
    del MEDIATORS["both_severed"]
    mine.write_text(MEDIATOR + "\n# changed")
    assert traced(model_folder, facts, tmp_path / "run", *asked) == 2
    assert "imports.mine.py: " in capsys.readouterr().err


def test_a_run_without_imports_records_none(model_folder, facts, tmp_path):
    assert traced(model_folder, facts, tmp_path / "run", "--mediator", "hidden") == 0
    manifest = read_manifest(tmp_path / "run")
    assert "imports" not in {**manifest["identity"], **manifest["circumstances"]}


def test_several_files_are_told_apart(tmp_path):
    (tmp_path / "other").mkdir()
    files = [file_of(tmp_path, "A = 1"), file_of(tmp_path / "other", "A = 2")]
    told = recorded(load_extensions(files, packages=False))
    assert list(told["identity"]["imports"]) == ["mine.py", "mine.py (2)"]
    assert told["circumstances"]["imports"] == [str(file) for file in files]


def test_a_file_is_run_once_in_a_process(tmp_path):
    counted = tmp_path / "counted"
    mine = file_of(tmp_path, f"with open({str(counted)!r}, 'a') as file:\n    file.write('x')")
    for _ in range(2):
        load_extensions([mine], packages=False)
    assert counted.read_text() == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nx = 1\nx.y\n", r"mine\.py, line 3: AttributeError: 'int' object has no attribute 'y'$"),
        ("x = (\n", r"mine\.py, line 1: SyntaxError: '\(' was never closed$"),
        ("import nowhere\n", r"mine\.py, line 1: ModuleNotFoundError: No module named 'nowhere'$"),
        ("def f():\n    raise ValueError\n\n\nf()\n", r"mine\.py, line 2: ValueError$"),
        (MEDIATOR + MEDIATOR, r"mine\.py, line 11: mediator 'both_severed' already exists; give another name$"),
    ],
)
def test_an_error_in_the_users_file_is_one_message_with_its_line(text, message, tmp_path, capsys):
    mine = file_of(tmp_path, text)
    assert run("trace", "--import", mine, "--help") == 2
    said = capsys.readouterr().err
    assert re.search(rf"^error: .+{message}", said, re.MULTILINE)
    assert "Traceback" not in said


def test_a_file_that_is_not_there_is_one_message(capsys):
    assert run("figures", "runs/none", "--import", "none.py") == 2
    assert "error: none.py cannot be read: No such file or directory" in capsys.readouterr().err


def test_a_users_probe_is_a_command_and_its_table_is_read_again(model_folder, examples, tmp_path, capsys):
    mine = file_of(tmp_path, PROBE)
    words = ["probe", "length", "--import", mine, "--examples", examples, "--tokens", "0,-1"]
    where = ["--model", model_folder, "--device", "cpu", "--output", tmp_path / "run"]
    assert run(*words, *where, "--option", "times=2") == 0
    assert "2 rows in" in capsys.readouterr().out
    made = read_run(tmp_path / "run")
    assert made.manifest["identity"]["command"] == "probe length"
    assert made.manifest["identity"]["times"] == 2
    assert made.record_type is None
    frame = made.to_frame()
    assert list(frame.columns) == ["name", "token_idx", "lengths", "share"]
    assert frame["lengths"].tolist()[0][0] % 2 == 0
    assert str(frame["token_idx"].dtype) == "int64"
    assert read_run(tmp_path / "run", PROBES["length"].record).to_frame()["share"].tolist() == frame["share"].tolist()
    assert run(*words, *where, "--option", "tims=2") == 2
    assert "probe 'length': unknown option 'tims'; did you mean 'times'?" in capsys.readouterr().err
    assert run("probe", "length", "--import", mine, "--help") == 0
    assert "times=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe("lens", "", LensReading, "prompt_probes.lens_probe"), "'lens' already exists"),
        (Probe("neurons", "", LensReading, "prompt_probes.lens_probe"), "'neurons' already exists"),
        (Probe("two words", "", LensReading, "prompt_probes.lens_probe"), "a name is one word"),
        (Probe("mine", "", dict, "prompt_probes.lens_probe"), "its record cannot be a row"),
        (Probe("mine", "", LensReading, lambda model, tokenizer, *, tokens=1: None), "option 'tokens' needs"),
        (Probe("mine", "", LensReading, lambda model, tokenizer, *, size: None), "option 'size' needs a default"),
    ],
)
def test_a_probe_that_could_not_be_run_is_refused(probe, message):
    with pytest.raises(InputError, match=message):
        register_probe(probe)


class Package:
    """An installed package with an entry point."""

    version = "1.2"


def entries(value):
    entry = importlib.metadata.EntryPoint("mine", value, GROUP)._for(Package())

    def found(*, group):
        assert group == GROUP
        return [entry]

    return found


def test_a_package_with_an_entry_point_is_loaded_and_recorded(model_folder, facts, tmp_path, monkeypatch):
    file_of(tmp_path, MEDIATOR, "interpret_mine.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("importlib.metadata.entry_points", entries("interpret_mine"))
    assert traced(model_folder, facts, tmp_path / "run", "--mediator", "both_severed") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"]["imports"] == {"mine": "1.2"}
    assert manifest["circumstances"]["extensions"] == {"mine": "1.2"}


def test_a_package_that_cannot_be_loaded_is_one_message(monkeypatch, capsys):
    monkeypatch.setattr("importlib.metadata.entry_points", entries("interpret_nowhere"))
    assert run("--help") == 2
    message = "error: extension 'mine' (interpret_nowhere) cannot be loaded: ModuleNotFoundError: No module named"
    assert message in capsys.readouterr().err
