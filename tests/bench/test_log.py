"""The log of an experiment: values are restored exactly, also after a kill, and versions do not depend on time."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from interpret.bench.experiment import Experiment
from interpret.bench.source import source_of
from interpret.bench.values import Encoder, Unkept, Unstorable, decode
from interpret.errors import InputError, RunError
from interpret.storage.disk import append_line
from interpret.tracing.result import TraceResult
from reference.results import RESULTS
from reference.tiny import tiny_model

TOP = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), str(TOP / "tests")]), "PYTHONHASHSEED": "random"}


@pytest.fixture
def exp(gpt2, tmp_path):
    return Experiment(gpt2, None, folder=tmp_path / "experiments")


def equal(left, right):
    """Assert that two values are the same, in type and down to the bits of their numbers."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    elif isinstance(left, np.ndarray | np.generic):
        np.testing.assert_array_equal(left, right, strict=True)
    elif isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right, check_exact=True)
        assert type(left.index) is type(right.index)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            equal(one, other)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            equal(left[key], right[key])
    elif hasattr(left, "__dataclass_fields__"):
        equal(vars(left), vars(right))
    else:
        assert left == right or (left != left and right != right)


@dataclass(frozen=True)
class Finding:
    name: str
    scores: torch.Tensor
    places: tuple[int, ...] = ()


FRAME = pd.DataFrame({"layer": [0, 1], "logit": [0.1, math.nan], "token": ["a", None], "known": [True, False]})
VALUES = {
    "nothing": None,
    "numbers": [1, -(2**70), 0.1, 5e-324, -0.0, math.nan, math.inf, -math.inf, True],
    "texts": ["", "naïve\n\u2028 \"'\\", "\udc80", "東京"],
    "containers": {"a": (1, [2, {3: "three", (4, 5): None}]), "b": {1, 2, 10}, "c": frozenset({"x"}), "d": ()},
    "a dict with our own key": {"$": "tensor", "other": 1},
    "path": Path("some/where.json"),
    "tensor": torch.tensor([[0.1, -2.0], [3e-8, 4.0]]),
    "bfloat16": torch.tensor([0.1, 3.0]).bfloat16(),
    "booleans": torch.tensor([True, False]),
    "integers": torch.tensor([2**62 + 1, -5]),
    "number as a tensor": torch.tensor(3.5, dtype=torch.float64),
    "no numbers": torch.zeros(0, 4),
    "not finite": torch.tensor([math.nan, math.inf, 1.0]),
    "large": torch.arange(2001, dtype=torch.float32).view(3, 667) / 7,
    "array": np.linspace(0, 1, 7).reshape(7, 1),
    "array of integers": np.arange(6, dtype=np.int16)[::-2],
    "large array": np.arange(4000.0).reshape(2, 2000).T,
    "number of numpy": np.float32(0.1),
    "whole number of numpy": np.int64(7),
    "frame": FRAME,
    "frame by names": FRAME.set_index("token").iloc[:1].rename_axis("who"),
    "frame with columns of one name": pd.DataFrame([[1, 2.5], [3, 4.5]], columns=["a", "a"], index=[7, 7]),
    "frame of objects": pd.DataFrame({"tokens": [["a", "b"], ["c"]]}),
    "empty frame": pd.DataFrame(),
    "dataclass": Finding("x", torch.ones(2), (1, 2)),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_equal(name, tmp_path):
    stored = Encoder(tmp_path).encode(VALUES[name], "it")
    text = json.dumps(stored, allow_nan=False)
    equal(decode(json.loads(text), tmp_path), VALUES[name])


def test_large_tensors_go_into_files_that_equal_ones_share(tmp_path):
    encoder = Encoder(tmp_path / "files")
    stored = encoder.encode([VALUES["large"], VALUES["large"].clone(), torch.zeros(1000)], "it")
    assert len(list((tmp_path / "files").iterdir())) == 1
    assert stored[0] == stored[1]
    assert "values" in stored[2]
    (file,) = (tmp_path / "files").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match="was changed after it was written: its hash differs from its name"):
        decode(stored, tmp_path / "files")
    file.unlink()
    with pytest.raises(RunError, match=r"safetensors: cannot be read: No such file"):
        decode(stored, tmp_path / "files")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, object()]}, "x['a'][1] has the type object, which cannot be stored"),
        (pd.DataFrame({"c": pd.Categorical(["a"])}), "x has the type DataFrame, which cannot be stored"),
        (pd.DataFrame({"c": [object()]}), "x['c'][0] has the type object, which cannot be stored"),
        (np.array(["a"]), "x has the type ndarray, which cannot be stored"),
        (torch.ones(2).to_sparse(), "x has the type Tensor, which cannot be stored"),
        (Finding, "x has the type type, which cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_named(value, message, tmp_path):
    with pytest.raises(Unstorable, match=re.escape(message)):
        Encoder(tmp_path).encode(value, "x")
    assert isinstance(decode(Encoder(tmp_path, keep_text=True).encode([value], "x"), tmp_path), list)


def test_a_dataclass_of_a_module_that_is_not_imported_is_an_error(tmp_path):
    stored = Encoder(tmp_path).encode(Finding("x", torch.ones(1)), "it")
    stored["type"] = "somewhere.else:Finding"
    with pytest.raises(RunError, match=re.escape("a stored value is a Finding of somewhere.else: import that module")):
        decode(stored, tmp_path)
    stored["type"] = f"{Finding.__module__}:Finding"
    del stored["fields"]["places"]
    with pytest.raises(RunError, match="a stored Finding has the fields name, scores, which differ from the current"):
        decode(stored, tmp_path)


# -------------------------------------------------------------------------------------------------------- the log


def test_calls_are_appended_and_come_back(exp):
    @exp.log
    def measure(prompt, *more, layer=3, weights=None):
        """Measure it."""
        time.sleep(0.01)
        return {"prompt": prompt, "found": Finding("x", torch.ones(3)), "table": FRAME}

    begun = time.monotonic()
    outcome = measure("text", 1, 2, weights=torch.zeros(2))
    took = time.monotonic() - begun
    measure("other")
    table = exp.versions("measure")
    assert table.columns.tolist() == ["version", "time", "seconds", "model", "arguments", "result"]
    assert len(table) == len(set(table.version)) == 2
    assert measure.__doc__ == "Measure it."
    logged = exp.version("measure", table.version[0])
    equal(logged.result, outcome)
    expected = {"prompt": "text", "more": (1, 2), "layer": 3, "weights": torch.zeros(2)}
    equal(logged.arguments, expected)
    assert logged.source.startswith("@exp.log\ndef measure(prompt, *more, layer=3, weights=None):")
    assert logged.libraries["torch"] == torch.__version__
    assert logged.libraries["numpy"] == np.__version__
    assert logged.torch_seed == torch.initial_seed()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", logged.time)
    assert 0.01 <= logged.seconds <= took
    assert logged.model["weights"].startswith("values ")


def test_the_same_run_is_the_same_version_and_a_line_of_its_own(exp):
    @exp.log
    def measure(prompt, layer=3):
        return calls.append(prompt) or len(calls)

    calls = []
    measure("text")
    measure(prompt="text", layer=3)
    measure("text", 4)
    versions = exp.versions("measure").version.tolist()
    assert versions[0] == versions[1] != versions[2]
    assert exp.version("measure", versions[0]).result == 2, "the latest"


def test_a_version_depends_on_source_arguments_and_model_but_not_on_the_folder(exp, tmp_path):
    def of(model, body, argument=1):
        other = Experiment(model, None, folder=tmp_path / str(len(list(tmp_path.iterdir()))))
        names = {}
        exec(f"def measure(x):\n    return {body}", names)
        other.log(names["measure"])(argument)
        return other.versions("measure").version[0]

    first = of(exp.model, "x + 1")
    assert of(tiny_model("gpt2"), "x + 1") == first
    assert of(exp.model, "x + 2") != first
    assert of(exp.model, "x + 1", 2) != first
    assert of(exp.model, "x + 1", 1.0) != first
    assert of(tiny_model("gpt2", seed=1), "x + 1") != first
    assert of(tiny_model("gpt2").double(), "x + 1") != first


def test_weights_from_files_are_identified_by_the_files(tmp_path):
    for place in ("here", "there"):
        tiny_model("gpt2").save_pretrained(tmp_path / place)
    versions = []
    for place in ("here", "there"):
        model = type(tiny_model("gpt2")).from_pretrained(tmp_path / place)
        exp = Experiment(model, None, folder=tmp_path / f"log of {place}")
        exp.log(same)(1)
        versions.append(exp.versions("same").version[0])
        assert exp.version("same", versions[-1]).model["weights"].startswith("files ")
    assert versions[0] == versions[1]


def same(x):
    return x


SCRIPT = """
    import sys, torch
    from reference.tiny import tiny_model
    from interpret import Experiment
    exp = Experiment(tiny_model("gpt2"), None, folder=sys.argv[1])

    @exp.log
    def measure(prompts, scale=2.0):
        return torch.arange(1500) * scale

    measure(["a", {"b": (1, 2)}, {"x", "y", "z"}])
"""


def test_a_version_survives_a_restart(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    subprocess.run([sys.executable, script, tmp_path / "log"], cwd=TOP, check=True, env=ENVIRONMENT)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "log")])
    runpy.run_path(str(script))
    exp = Experiment(tiny_model("gpt2"), None, folder=tmp_path / "log")
    versions = exp.versions("measure").version.tolist()
    assert len(versions) == 2
    assert len(set(versions)) == 1, "sets have no order, and a new process another hash seed"
    logged = exp.version("measure", versions[0])
    equal(logged.result, torch.arange(1500) * 2.0)
    equal(logged.arguments, {"prompts": ["a", {"b": (1, 2)}, {"x", "y", "z"}], "scale": 2.0})


def test_an_incomplete_line_is_a_warning_and_the_rest_is_kept(exp):
    logged = exp.log(same)
    logged(1)
    logged(2)
    path = exp.folder / "same.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    with pytest.warns(UserWarning, match=r"same.jsonl: skipped an incomplete last line \(50 bytes\)"):
        assert len(exp.versions("same")) == 2
    with pytest.warns(UserWarning, match=r"same.jsonl: removed an incomplete last line \(50 bytes\)"):
        logged(3)
    assert path.read_bytes().startswith(whole)
    assert exp.versions("same").result.tolist() == ["1", "2", "3"]


@pytest.mark.parametrize("size", [1, 30, 200])
def test_a_log_cut_anywhere_keeps_the_lines_before(exp, size):
    logged = exp.log(same)
    logged(1)
    logged(2)
    path = exp.folder / "same.jsonl"
    path.write_bytes(path.read_bytes()[:-size])
    with pytest.warns(UserWarning, match="incomplete"):
        assert exp.versions("same").result.tolist() == ["1"]


def test_a_line_of_another_program_is_an_error(exp):
    logged = exp.log(same)
    logged(1)
    path = exp.folder / "same.jsonl"
    path.write_bytes(path.read_bytes() + b'{"mine": 1}\n')
    with pytest.raises(RunError, match=r"same.jsonl: line 2 is not a log line of format 1"):
        exp.versions("same")


def test_concurrent_logs_keep_their_lines_whole(exp):
    def work(worker):
        for number in range(20):
            append_line(exp.folder / "log.jsonl", f"{worker} {number} ".encode() + b"x" * 100_000)

    exp.folder.mkdir()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    lines = (exp.folder / "log.jsonl").read_bytes().split(b"\n")
    assert {len(line) for line in lines[:-1]} <= {100_004, 100_005}
    assert len(set(lines)) == 81


def test_results_that_cannot_be_stored_keep_their_repr(exp):
    logged = exp.log(same)

    @exp.log
    def give():
        return [1, Ellipsis]

    assert give() == [1, Ellipsis]
    assert exp.version("give", exp.versions("give").version[0]).result == [1, Unkept("ellipsis", "Ellipsis")]
    with pytest.raises(Unstorable, match=re.escape("same(): argument 'x' has the type ellipsis, which cannot be")):
        logged(...)
    assert not (exp.folder / "same.jsonl").exists(), "refused before it ran"


def test_tools_are_not_logged_if_the_log_is_above(exp):
    @exp.log
    @exp.use_tools("cache")
    def good(prompt, cache):
        return cache([prompt], "resid_post.0")["resid_post.0"]

    @exp.use_tools("cache")
    @exp.log
    def wrong(prompt, cache):
        return cache

    good([5, 6])
    logged = exp.version("good", exp.versions("good").version[0])
    assert logged.arguments == {"prompt": [5, 6]}
    assert logged.result.shape == (1, 2, 32)
    message = (
        "wrong(): argument 'cache' has the type partial, which cannot be stored (if it is a tool, put @exp.log "
        "above @exp.use_tools: tools are then not logged)"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        wrong([5, 6])


def test_results_of_this_package_come_back(exp):
    result = TraceResult(**dict.fromkeys(TraceResult.__dataclass_fields__) | {"scores": np.ones((2, 3))})
    exp.log(name="trace")(lambda: result)()
    equal(exp.version("trace", exp.versions("trace").version[0]).result, result)


@pytest.mark.parametrize(("name", "plain"), [("neurons", list), ("interpreted", dict), ("lens frame", pd.DataFrame)])
def test_results_that_are_lists_dicts_and_frames_come_back_as_these(name, plain, tmp_path):
    result = RESULTS[name]
    equal(decode(json.loads(json.dumps(Encoder(tmp_path).encode(result, "it"))), tmp_path), plain(result))


def test_a_call_that_fails_is_not_logged(exp):
    @exp.log
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert not (exp.folder / "fail.jsonl").exists()


def test_missing_logs_and_versions_are_named(exp):
    with pytest.raises(InputError, match="has no logs yet"):
        exp.versions("same")
    exp.log(same)(1)
    with pytest.raises(InputError, match="unknown log 'sme'; did you mean 'same'"):
        exp.versions("sme")
    with pytest.raises(InputError, match="unknown version of same '0'; Allowed: "):
        exp.version("same", "0")
    with pytest.raises(InputError, match="invalid log name '<lambda>'"):
        exp.log(lambda: 1)
    with pytest.raises(InputError, match="invalid log name '../x'"):
        exp.log(name="../x")(same)


def test_a_failing_disk_is_one_message(exp, monkeypatch):
    exp.folder.parent.joinpath("experiments").write_text("a file")
    with pytest.raises(RunError, match="experiments cannot be created"):
        exp.log(same)(1)


OTHER_FILES = ["def other():\n    pass\n", "Some prose, an open (bracket\n", "  odd\n indentation\n", ""]


@pytest.mark.parametrize("text", OTHER_FILES)
def test_code_under_the_name_of_another_file_is_identified_by_its_bytecode(tmp_path, text):
    file = tmp_path / "other.py"
    file.write_text(text)

    def source(code):
        names = {}
        exec(compile(code, str(file), "exec"), names)
        return source_of(names["double"])

    first = source("def double(x):\n    return x * 2")
    assert "bytecode" in json.loads(first)
    assert source("\n\ndef double(x):\n    return x * 2") == first, "wherever it stands"
    assert source("def double(x):\n    return x * 3") != first
    assert source("def double(x):\n    return [y * 2 for y in x]") != source(
        "def double(x):\n    return [y for y in x]"
    )


def test_source_is_the_functions_own(exp):
    assert source_of(same) == "def same(x):\n    return x\n"
    assert source_of(exp.log(same)) == source_of(same)
