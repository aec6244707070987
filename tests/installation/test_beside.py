"""The wheel beside releases of transformers that a user may have: nothing moves, and everything works or says why."""

import json

import pytest

from reference.commands import fact_rows, json_file
from reference.environments import make_environment

BESIDE = {
    "4.34.0": ["transformers==4.34.0"],
    "4.34.0 with accelerate": ["transformers==4.34.0", "accelerate==0.31.0"],
    "4.46.3": ["transformers==4.46.3"],
    "newest": ["transformers"],
}
KEPT = ["transformers", "tokenizers", "huggingface-hub", "torch"]
WORK_IN = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("4.34.0", "newest")]
ALL = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in BESIDE]

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def environment(request, wheel, tmp_path_factory):
    """An environment with a release of transformers, what pip would add for the wheel, and then the wheel itself."""
    made = make_environment(tmp_path_factory.mktemp("environment"))
    made.install("torch", *BESIDE[request.param])
    before = made.versions()
    would = made.would_install(wheel)
    made.install(wheel)
    return request.param, made, before, would


@pytest.mark.parametrize("environment", ALL, indirect=True)
def test_the_wheel_moves_nothing_and_is_complete(environment):
    name, made, before, would = environment
    assert set(KEPT) <= set(before)
    assert before["torch"].startswith("2.13.0")
    assert "llm-interpret" in would
    assert not set(would) & set(before), "moved"
    after = made.versions()
    assert after == before | would
    assert "No broken requirements found" in made.pip("check")
    if name in ("4.34.0", "4.46.3"):
        assert after["transformers"] == name


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


COMMANDS = {
    "selfie": "--examples prompts.json --layers 1 --tokens last --new-tokens 3",
    "trace": "--facts facts.json --no-filter --samples 2",
    "attribute": "--prompt Paris --target is",
    "probe lens": "--examples prompts.json",
}
"""What writes a table, on a tiny model that reads only 64 tokens."""


@pytest.mark.parametrize("environment", WORK_IN, indirect=True)
def test_every_analysis_works_in_an_empty_folder(environment, empty, model_folder):
    _, made, _, _ = environment
    done = made.run("interpret", "examples", cwd=empty)
    assert (done.returncode, "examples/facts.json" in done.stdout.splitlines()) == (0, True), done.stderr
    json_file(empty / "prompts.json", {"examples": [{"prompt": "I love pizza", "category": "mine"}]})
    json_file(empty / "facts.json", fact_rows(1))
    for command, arguments in COMMANDS.items():
        words = [*command.split(), *arguments.split(), "--model", model_folder, "--device", "cpu", "--output", "run"]
        done = made.run("interpret", *words, cwd=empty)
        assert done.returncode == 0, (command, done.stderr)
        manifest = json.loads((empty / "run" / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["counts"]["rows"] > 0, (command, done.stderr)
        (empty / "run").rename(empty / command.replace(" ", "_"))
    done = made.run("interpret", "check", model_folder, "--device", "cpu", cwd=empty)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all outputs equal those of the stock model")


@pytest.mark.parametrize("environment", [ALL[2]], indirect=True)
def test_a_release_in_between_stays_and_is_refused_by_name(environment, empty, model_folder):
    _, made, _, _ = environment
    done = made.run("interpret", "check", model_folder, cwd=empty)
    assert (done.returncode, done.stderr) == (
        2,
        "error: transformers 4.46.3 is not supported: use 4.34.0, or 4.57 or newer "
        "(pip install --upgrade transformers)\n",
    )


@pytest.mark.parametrize("environment", WORK_IN, indirect=True)
def test_what_needs_an_extra_names_the_line_that_installs_it(environment, empty, model_folder):
    name, made, before, _ = environment
    done = made.run("interpret", "check", model_folder, "--load-in-8bit", "--device", "cpu", cwd=empty)
    extra = "patch" if name == "4.34.0" else "bitsandbytes"
    line = f"llm-interpret[{extra}]"
    assert (done.returncode, done.stderr.splitlines()[-1].endswith(f'pip install "{line}"')) == (2, True), done.stderr
    added = made.would_install(line)
    assert "bitsandbytes" in added
    assert not set(added) & set(KEPT)
    added = made.would_install("llm-interpret[patch]" if name == "4.34.0" else "llm-interpret[peft]")
    assert "peft" in added
    assert not set(added) & set(KEPT)
