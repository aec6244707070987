"""docs/coming-from.md: what it shows of this project runs as it stands, and its tables name what exists."""

import json
import re
import shlex
from pathlib import Path

import numpy
import pandas
import pytest
import torch

import interpret
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.plan import _OTHER_NAMES
from interpret.attribution.steps.functions import FUNCTIONS
from interpret.bench.tools import TOOLS
from interpret.selfie.templates import interpretation_prompt
from reference.commands import FACT_PROMPTS, answering, fact_rows, json_file, run, saved_model
from reference.toy_tokenizers import byte_level

TEXT = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
FORK = (
    "name,prompt,current token,token_idx,interpretation,prompt_output,prompt_token_list,category,layer_idx,"
    "interpretation_weights,interpretation_prob,repeat_prompt,repeat_prompt_name"
).split(",")
"""The columns of the script of the fork."""


def blocks(kind):
    """The fenced blocks with exactly these words after the backticks."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines()]


def arguments(line, **places):
    """The arguments of a command line, with other paths in place of those of the document."""
    name, *words = shlex.split(line)
    assert name == "interpret"
    return [places.get(word, word) for word in words]


def test_all_blocks_are_run_or_theirs():
    kinds = re.findall(r"^```(\S.*)$", TEXT, re.MULTILINE)
    assert set(kinds) == {"python", "python theirs", "sh", "sh theirs", "yaml hparams/llama_config.yaml"}
    assert TEXT.count("\n```") == 2 * len(kinds)
    assert len(commands()) == 4


@pytest.fixture
def own_functions():
    """Afterwards the table of step functions is as before."""
    kept = dict(FUNCTIONS)
    yield
    FUNCTIONS.clear()
    FUNCTIONS.update(kept)


@pytest.mark.usefixtures("own_functions")
def test_the_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "coming-from.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {
        "ex_0.json",
        "ex_1.json",
        "located",
        "experiments",
        "head.png",
        "flow.png",
    }
    (saved,) = interpret.attribution.Attribution.load("ex_0.json").sequences
    assert len(saved.layer_scores) == 30, "one MLP per layer"
    found = names["test_knowledge_prober"](names["input_ids"], 0, 0)["k_probe"]
    assert (found.n_pairs, found.true_mean) == (1, found.false_mean)
    assert set(names["located"].to_frame()["name"]) == {"fact_0", "fact_1"}
    assert_the_edit_is_that_of_a_hook(names)
    assert (names["weighted"] == names["one"].scores * names["one"].step_scores["logit_difference"])[:5].all()


def assert_the_edit_is_that_of_a_hook(names):
    """The lines beside those of nnsight give the logits of a plain hook that writes into the output of layer 8."""
    model, outputs = names["model"], []

    def read(module, inputs, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    def write(module, inputs, output):
        (output[0] if isinstance(output, tuple) else output)[:, -1] = outputs[0][:, -1]

    hooks = [model.model.layers[5].register_forward_hook(read), model.model.layers[8].register_forward_hook(write)]
    with torch.no_grad():
        logits = model(**names["inputs"]).logits
        stock = [hook.remove() for hook in hooks] and model(**names["inputs"]).logits
    torch.testing.assert_close(names["logits"], logits)
    assert not torch.allclose(logits, stock)


def test_knowledge_tracing_runs_by_its_configuration(tmp_path, monkeypatch):
    answering(saved_model(tmp_path / "model"), FACT_PROMPTS[0][0], " Paris")
    (config,) = blocks("yaml hparams/llama_config.yaml")
    (tmp_path / "hparams").mkdir()
    own = config.replace("meta-llama/Llama-3.2-3B", str(tmp_path / "model"))
    assert own != config
    (tmp_path / "hparams" / "llama_config.yaml").write_text(own)
    (tmp_path / "data").mkdir()
    json_file(tmp_path / "data" / "known_1000.json", fact_rows(2))
    monkeypatch.chdir(tmp_path)
    for line in commands()[:2]:
        assert run(*arguments(line)) == 0
    files = re.findall(r"`(?:results/llama-3\.2-3b)?(-\w+\.pt)`", TEXT)
    assert sorted(Path("results").glob("*.pt")) == sorted(Path(f"results/llama-3.2-3b{name}") for name in files)
    # What that project's causal_analysis.py reads.
    te, valid, effects = (
        torch.load(f"results/llama-3.2-3b-{name}.pt") for name in ("te", "valid_index", "ie_wo_sever")
    )
    assert torch.stack([te[i] for i in valid]).shape == (1,)
    assert torch.stack([effects[i][:, -1] for i in valid]).shape == (1, 4), "[facts, layers] at the last token"
    assert (tmp_path / "results" / "figures" / "average_heatmap.png").exists()


def test_the_script_of_the_fork_is_one_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    json_file(Path("examples_config.json"), {"examples": [{"prompt": "I love pizza", "category": "fact"}]})
    line = commands()[2]
    assert run(*arguments(line, **{"path/to/llama2_chat": saved_model(tmp_path / "model")})) == 0
    table = pandas.read_csv("interpretations/table.csv", keep_default_na=False)
    assert list(table.columns[:13]) == FORK
    assert set(table["repeat_prompt"]) == {
        "[INST] _ _ _ _ _ [/INST] Sure, I will repeat for you:",
        "[INST] _ _ _ _ _ [/INST] The object you said is:",
        "[INST] _ _ _ _ _ [/INST] The object in your message is:",
    }
    assert set(table["prompt"]) == {"[INST] I love pizza [/INST]"}
    tokens = json.loads(table["prompt_token_list"][0])
    n_prompt = len(byte_level(chat=True)("[INST] I love pizza [/INST]").input_ids)
    assert len(tokens) == n_prompt + 1
    assert tokens[-1] == table["prompt_output"][0]
    assert {int(one) for one in table["token_idx"] if one != ""} == set(range(n_prompt + 1))


def test_romes_command_leaves_files_with_its_keys(tmp_path, monkeypatch):
    answering(saved_model(tmp_path / "model"), FACT_PROMPTS[0][0], " Paris")
    (tmp_path / "data").mkdir()
    json_file(tmp_path / "data" / "known_1000.json", fact_rows(1))
    monkeypatch.chdir(tmp_path)
    assert run(*arguments(commands()[3], **{"gpt2-xl": tmp_path / "model"})) == 0
    files = sorted(Path("results/gpt2-xl/grids").glob("*.npz"))
    assert {str(numpy.load(file)["kind"]) for file in files} == {"", "mlp", "attn"}
    for key in re.findall(r"`(\w+)`", TEXT.split("with ROME's keys (")[1].split(")")[0]):
        assert key in numpy.load(files[0])


def test_the_other_prompt_of_the_script_has_its_text():
    (words,) = re.findall(r'^template = "(.*)"$', TEXT, re.MULTILINE)
    text = interpretation_prompt(byte_level(), words.replace("\\n", "\n")).text
    assert text == "[INST] _ _ _ _ _ [/INST]\nSure, I'll summerize your message:"


def table_rows(heading):
    """The cells of a table in a section: left -> right."""
    section = TEXT.split(f"\n{heading}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    return dict(rows[1:]) if rows[0][0].startswith("-") else dict(rows)


def test_every_argument_of_inseq_with_another_name_is_in_the_table():
    left = " ".join(table_rows("### Names"))
    assert [name for name in _OTHER_NAMES if name not in left] == []


def test_names_in_the_tables_exist():
    for cell in table_rows("### The tools").values():
        for name in re.findall(r"`(\w+)", cell):
            assert name in TOOLS, cell
    for name in re.findall(r"`(attribution\.\w+(?:\.\w+)?)", " ".join(table_rows("### Names").values())):
        found: object = interpret
        for part in name.split("."):
            found = getattr(found, part)
    assert {"discretized_integrated_gradients", "layer_gradient_x_activation"} <= METHODS.keys()
