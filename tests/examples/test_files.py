"""The example files are found, written into a folder, and are what the commands read."""

import json
import re
import shlex
import subprocess

import pytest
import yaml
from typer.main import get_command

import interpret
from interpret.cli import COMMANDS, PROBES, make_app
from interpret.errors import InputError, RunError
from interpret.examples import copy_examples, example
from reference.commands import run
from reference.house import TOP

NAMES = {"examples.json", "facts.json", "pairs.json", "trace.yaml", "interpretation_demo.ipynb"}


def test_each_example_is_found_by_its_name():
    assert interpret.example("facts") == TOP / "examples" / "facts.json"
    assert interpret.example("interpretation_demo") == TOP / "scripts" / "interpretation_demo.ipynb"
    assert len(interpret.load_facts(example("facts")).facts) >= 12
    assert len(interpret.load_examples(example("examples"))) >= 4
    assert interpret.facts.load_pairs(example("pairs"))


def test_an_unknown_example_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown example 'fact'; did you mean 'facts'"):
        example("fact")


def test_the_command_writes_all_into_a_folder_and_says_which(tmp_path, capsys):
    assert run("examples", "--to", tmp_path / "a" / "b") == 0
    written = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert written >= NAMES
    assert set(capsys.readouterr().out.splitlines()) == {str(tmp_path / "a" / "b" / name) for name in written}
    for name in written:
        assert (tmp_path / "a" / "b" / name).read_bytes() == example(name.partition(".")[0]).read_bytes()


def test_without_a_folder_it_is_the_one_that_the_help_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("examples") == 0
    assert run("examples") == 0  # all are there already
    assert json.loads((tmp_path / "examples" / "facts.json").read_text(encoding="utf-8"))


def test_a_file_of_the_user_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "facts.json").write_text("mine")
    assert run("examples", "--to", tmp_path) == 2
    assert f"{tmp_path / 'facts.json'} is there already and differs from the example" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"facts.json"}
    assert (tmp_path / "facts.json").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file: the examples cannot be written: File exists"):
        copy_examples(tmp_path / "file")


@pytest.mark.parametrize("line", ["probe neurons", "compare", "export"])
def test_help_says_where_the_files_of_its_example_come_from(line, capsys):
    assert run(*line.split(), "--help") == 0
    assert "'interpret examples' writes the files of the folder examples." in capsys.readouterr().out


def test_help_of_a_command_that_reads_no_example_does_not(capsys):
    assert run("check", "--help") == 0
    assert "interpret examples" not in capsys.readouterr().out


LINES = [
    line.strip()
    for command in (*COMMANDS.values(), *PROBES.values())
    for line in str(command.__doc__).splitlines()
    if line.strip().startswith("interpret ")
]
"""The examples of ``--help``."""


@pytest.mark.parametrize("line", LINES)
def test_an_example_of_help_has_options_that_exist_and_files_that_are_written(line):
    _, *words = shlex.split(line)
    command = get_command(make_app())
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command.make_context("example", words)  # an unknown option or a missing argument is an error
    written = {f"examples/{name}" for name in NAMES}
    assert set(re.findall(r"examples/\S+", line)) <= written


def test_every_command_has_an_example():
    assert len(LINES) >= len(COMMANDS) + len(PROBES)


SCRIPT, MANIFEST = TOP / "examples" / "workers.sbatch", TOP / "examples" / "workers-rayjob.yaml"


def understood(words):
    """Parse a command line of ours, and return its values by parameter."""
    assert words[0] == "interpret"
    command = get_command(make_app()).commands[words[1]]
    return command.make_context(words[1], words[2:]).params


def test_the_slurm_script_is_bash_and_runs_a_command_that_is_understood():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    text = SCRIPT.read_text()
    assert "#SBATCH --ntasks-per-node=1\n" in text  # one `ray start` a node
    line = text[text.index(" -- \\\n") + 4 :].replace("\\\n", " ")
    line = line.replace("$((SLURM_JOB_NUM_NODES * 8))", "32")
    found = understood(shlex.split(line))
    assert (found["workers"], found["cluster"], str(found["facts"])) == (32, "auto", "facts.json")


def test_the_kubernetes_manifest_is_a_rayjob_with_a_command_that_is_understood():
    job = yaml.safe_load(MANIFEST.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    found = understood(shlex.split(job["spec"]["entrypoint"]))
    assert found["cluster"] == "auto"
    (group,) = spec["workerGroupSpecs"]
    gpus = 0
    for pod, replicas in ((spec["headGroupSpec"]["template"], 1), (group["template"], group["replicas"])):
        (container,) = pod["spec"]["containers"]
        mounted = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == mounted
        gpus += replicas * container["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert found["workers"] == gpus
