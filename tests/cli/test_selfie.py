"""The commands as a user types them, on a tiny model saved in a folder."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from interpret import cli
from interpret.cli import console
from interpret.cli.selfie import _table
from interpret.records import Interpretation, columns
from interpret.selfie import rows
from interpret.storage import run_folder
from reference.commands import run, run_killed, saved_model
from reference.interpretation_records import made

TOP = Path(__file__).parents[2]
SCRIPT = TOP / "scripts" / "get_interpretations_from_examples.py"
# As the tests' own process: another number of threads adds in another order, which shows in last digits.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
LISTS = [
    "interpretation",
    "prompt_token_list",
    "interpretation_weights",
    "interpretation_prob",
    "probability_without_insertion",
    "signed_relevancy",
    "interpretation_tokens",
    "probability_with_wrong_vector",
    "probability_with_text",
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def examples(tmp_path):
    entries = [{"prompt": f"I love pizza {n}", "category": "abc"[n % 3], "raw": n == 0} for n in range(4)]
    path = tmp_path / "examples.json"
    path.write_text(json.dumps({"examples": entries}))
    return path


def arguments(model_folder, examples, output, *more):
    quick = ["--new-tokens", "3", "--prompt-output-tokens", "2", "--layers", "0,2", "--tokens", "content"]
    paths = ["--model", str(model_folder), "--examples", str(examples), "--output", str(output)]
    return ["selfie", *paths, "--device", "cpu", *quick, *more]


def test_the_table_has_the_documented_columns_and_every_list_cell_is_json(model_folder, examples, tmp_path, capsys):
    assert run(*arguments(model_folder, examples, tmp_path / "run")) == 0
    table = pandas.read_csv(tmp_path / "run" / "table.csv", keep_default_na=False)
    assert list(table.columns) == columns(Interpretation)
    assert list(table.columns[:4]) == ["name", "prompt", "current token", "token_idx"]
    assert list(table["name"].unique()) == ["a_1", "b_1", "c_1", "a_2"]
    for name in LISTS:
        assert all(isinstance(json.loads(cell), list) for cell in table[name])
    lengths = (
        table[[*LISTS]]
        .drop(columns=["prompt_token_list", "probability_with_wrong_vector", "probability_with_text"])
        .map(lambda cell: len(json.loads(cell)))
    )
    assert (lengths.nunique(axis=1) == 1).all()
    shown = capsys.readouterr().out
    assert f"{len(table)} rows in {tmp_path / 'run' / 'table.csv'}" in shown.replace("\n", "")
    assert "control" in shown


def test_the_script_is_the_command(model_folder, examples, tmp_path):
    argv = arguments(model_folder, examples, tmp_path / "one")
    assert run(*argv) == 0
    argv[argv.index(str(tmp_path / "one"))] = str(tmp_path / "two")
    command = [sys.executable, SCRIPT, *argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=ONE_THREAD)
    assert (done.returncode, "Warning" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "one" / "table.csv").read_bytes() == (tmp_path / "two" / "table.csv").read_bytes()


def test_the_manifest_says_where_the_numbers_come_from(model_folder, examples, tmp_path):
    assert run(*arguments(model_folder, examples, tmp_path / "run", "--seed", "7")) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    identity, circumstances = manifest["identity"], manifest["circumstances"]
    assert identity["model"] == str(model_folder)
    assert re.fullmatch("sha256 [0-9a-f]{64}", identity["weights"])
    assert (identity["seed"], identity["dtype"], identity["layers"]) == (7, "float32", "0,2")
    assert identity["interpretation_prompts"] == ["summarize"]
    assert circumstances["device"] == "cpu"
    assert {"torch", "transformers", "llm-interpret"} <= set(circumstances["versions"])
    assert manifest["status"] == "complete"
    assert manifest["counts"] == {"in": 4, "kept": 4, "dropped": 0, "rows": len(table_of(tmp_path / "run"))}


def table_of(folder):
    return run_folder.read_table(folder, Interpretation)


def test_the_printed_table_has_a_column_of_prompts_only_where_they_differ():
    text = "a tower of iron in Paris that is visited by many people every year"
    one = made(interpretation_text=text, layer_idx=3)
    for records, heading in (([one], False), ([one, replace(one, name="b")], True)):
        with console.out.capture() as printed:
            console.out.print(_table(records))
        shown = printed.get()
        assert ("prompt" in shown) == heading
        assert "visited" in shown, "two lines of the text"
        assert max(map(len, shown.splitlines())) <= console.out.width


def test_a_finished_run_is_shown_again_without_work(model_folder, examples, tmp_path, capsys, monkeypatch):
    argv = arguments(model_folder, examples, tmp_path / "run")
    assert run(*argv) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(rows, "interpretations", None)
    assert run(*argv) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert "4 of 4 prompts are already done" in again.err


def test_killed_and_run_again_it_ends_with_the_table_of_an_unbroken_run(model_folder, tmp_path):
    entries = [{"prompt": f"I love pizza {n}", "category": "c"} for n in range(30)]
    (tmp_path / "examples.json").write_text(json.dumps({"examples": entries}))
    argv = arguments(model_folder, tmp_path / "examples.json", tmp_path / "killed", "--new-tokens", "20")
    run_killed(SCRIPT, *argv[1:])
    assert (tmp_path / "killed" / "progress.jsonl").read_bytes().count(b"\n") == 3
    assert {row.name for row in table_of(tmp_path / "killed")} == {"c_1", "c_2", "c_3"}
    assert run(*argv) == 0
    argv[argv.index(str(tmp_path / "killed"))] = str(tmp_path / "whole")
    assert run(*argv) == 0
    assert (tmp_path / "killed" / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()


def test_interrupted_it_says_what_is_safe(model_folder, examples, tmp_path, capsys, monkeypatch):
    real = rows.Interpreter.read

    def interrupted(*args, **options):
        for record in real(*args, **options):
            if record.name == "c_1":
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(rows.Interpreter, "read", interrupted)
    assert run(*arguments(model_folder, examples, tmp_path / "run")) == 130
    said = capsys.readouterr().err
    assert "stopped after 2 of 4 prompts and 20 interpretations of the next; the same command resumes" in said


def test_several_prompts_of_both_kinds(model_folder, examples, tmp_path):
    more = ["--interpretation-prompt", "repeat", "--interpretation-prompt", "Say{slots} !", "--slots", "2"]
    assert run(*arguments(model_folder, examples, tmp_path / "run", *more)) == 0
    rows = table_of(tmp_path / "run")
    assert {row.repeat_prompt_name for row in rows} == {"repeat", "Say{slots} !"}
    assert {row.repeat_prompt for row in rows if row.repeat_prompt_name != "repeat"} == {"Say _ _ !"}


def test_quantized_models_are_interpreted_too(model_folder, examples, tmp_path):
    assert run(*arguments(model_folder, examples, tmp_path / "run", "--load-in-8bit")) == 0
    assert run(*arguments(model_folder, examples, tmp_path / "full")) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"]["load_in_8bit"] is True
    assert (tmp_path / "run" / "table.csv").read_bytes() != (tmp_path / "full" / "table.csv").read_bytes()


def test_a_model_without_chat_template_says_so(model_folder, examples, tmp_path, capsys):
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in model_folder.iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    config = json.loads((plain / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    assert run(*arguments(plain, examples, tmp_path / "run")) == 0
    assert "this model has no chat template: prompts are used without one" in capsys.readouterr().err


def test_another_runs_folder_is_refused_and_left_alone(model_folder, examples, tmp_path, capsys):
    argv = arguments(model_folder, examples, tmp_path / "run")
    assert run(*argv) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    argv[argv.index("3")] = "4"
    assert run(*argv) == 2
    message = capsys.readouterr().err
    assert "contains another run:" in message
    assert "  --new-tokens: 3 in the folder, 4 now" in message
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--layers", "9"], "error: layer 9 does not exist; there are layers 0 to 4, or -5 to -1"),
        (["--tokens", "contnt"], "error: unknown token selector 'contnt'; did you mean 'content'?"),
        (["--examples", "none.json"], "error: none.json does not exist; give a JSON file like examples/examples.json"),
        (["--model", "./none"], "error: there is no folder './none'"),
        (["--interpretation-prompt", "sumarize"], "error: unknown interpretation prompt 'sumarize'; did you mean"),
        (["--replacing-mode", "nomralized"], "error: unknown replacing mode 'nomralized'; did you mean 'normalized'?"),
        (["--overlay-strength", "2"], "error: insertion: --overlay-strength 2.0 is outside 0 to 1"),
        (["--insertion-layer", "4"], "error: insertion: layer 4 does not exist; this model has layers 0 to 3"),
        (["--insertion-layer", "one"], "error: insertion layer is 'one'; give the index of a layer, or 'same'"),
        (["--site", "atn_out"], "error: unknown site 'atn_out'; did you mean 'attn_out'?"),
        (["--chat-template", "x"], "error: chat template 'x' must contain {prompt} exactly once"),
        (["--dtype", "float23"], "error: unknown dtype 'float23'; did you mean 'float32'?"),
        (["--new-tokens", "64"], "error: interpretation prompt 'summarize' has "),
        (["--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["--bogus"], "No such option"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(model_folder, examples, tmp_path, capsys, change, message):
    assert run(*arguments(model_folder, examples, tmp_path / "run", *change)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists(), "the corrected command would be taken for another run"


def test_check_reports_no_difference_and_the_family(model_folder, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["check", str(model_folder), "--device", "cpu"])
    assert not exit_.value.code
    shown = capsys.readouterr().out
    assert len(re.findall(r"largest difference 0$", shown, re.MULTILINE)) == 10
    assert "largest difference" in shown
    assert re.search(r"^family +llama, sequential layers$", shown, re.MULTILINE)
    assert re.search(r"^transformers +4\.34\.0$", shown, re.MULTILINE)
    assert "all outputs equal those of the stock model" in shown


def test_check_fails_where_surgery_changes_what_it_must_not(model_folder, capsys, monkeypatch):
    from interpret.surgery import hooks

    monkeypatch.setattr(hooks, "overlay", lambda hidden, *rest: hidden + 1e-3)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["check", str(model_folder), "--device", "cpu"])
    assert exit_.value.code == 2
    assert "surgery without edits changed the outputs of this model by up to" in capsys.readouterr().err


def test_report_makes_a_page_of_a_run_without_the_model(model_folder, examples, tmp_path, capsys):
    assert run(*arguments(model_folder, examples, tmp_path / "run")) == 0
    (tmp_path / "page.html").write_text("older")
    assert run("report", tmp_path / "run", "-o", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "I love pizza 3" in page
    assert sorted(file.name for file in tmp_path.iterdir()) == ["examples.json", "page.html", "run"]


def test_a_page_that_cannot_be_written_is_one_message(model_folder, examples, tmp_path, capsys):
    assert run(*arguments(model_folder, examples, tmp_path / "run")) == 0
    assert run("report", tmp_path / "run", "-o", tmp_path / "none" / "page.html") == 2
    assert "page.html cannot be written: No such file or directory" in capsys.readouterr().err.replace("\n", " ")


def test_help_teaches(capsys):
    assert run("selfie", "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--examples", "--layers", "--tokens", "--interpretation-prompt", "--load-in-8bit", "--seed"):
        assert option in shown
