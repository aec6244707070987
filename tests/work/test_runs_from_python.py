"""Runs from Python: the very folders that the commands make, to the byte, and what they are read into."""

import json
from collections.abc import Callable

import numpy as np
import pandas
import pytest
import torch

import interpret
from interpret.errors import InputError, RunError
from interpret.facts.files import Fact, load_facts
from interpret.models.identity import model_identity
from interpret.models.opening import load
from interpret.models.quantize import quantize_
from interpret.probing.neuron_runs import run_neurons
from interpret.probing.prompt_runs import run_heads, run_lens, run_logits, run_probe
from interpret.prompts.prompts import Prompt, load_examples
from interpret.records import HeadView, Interpretation, TokenScore, TraceCell, columns
from interpret.storage.run_folder import RunFolder, read_run
from interpret.tracing.inputs import TraceSettings
from reference.commands import fact_rows, json_file, run, saved_model

TIMES = ("started", "finished", "continuations", "circumstances")
PAIRS = [
    ("Anna's apples are red", "Anna's apples are blue"),
    ("I love eating pizza", "I love eating stones"),
    ("Water is wet", "Water is dry"),
]


@pytest.fixture
def examples(tmp_path):
    entries = [
        {"prompt": "The Eiffel Tower is in", "category": "raw", "raw": True, "target": "Paris", "foil": "Rome"},
        {"prompt": "I love pizza", "category": "chat", "target": "too", "foil": "Paris"},
    ]
    return json_file(tmp_path / "examples.json", {"examples": entries})


@pytest.fixture
def facts(tmp_path):
    rows = fact_rows(3, foil="Rome")
    return json_file(tmp_path / "facts.json", [*rows, {"prompt": "nobody is here"}])


@pytest.fixture
def pairs(tmp_path):
    return json_file(tmp_path / "pairs.json", {"pairs": [{"true": true, "false": false} for true, false in PAIRS]})


def contents(folder):
    """The bytes of a run folder but for its manifest; and of that what does not change from run to run."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    return files, {key: value for key, value in manifest.items() if key not in TIMES}


def of_command(folder, model_folder, *words):
    """What a command leaves in a folder."""
    assert run(*words, "--model", model_folder, "--device", "cpu", "--output", folder) in (0, 3)
    return contents(folder)


CASES: dict[str, tuple[list[str], Callable[..., RunFolder]]] = {
    "selfie": (
        ["selfie", "--examples", "{examples}", "--new-tokens", "3", "--prompt-output-tokens", "2", "--layers", "0,2"]
        + ["--interpretation-prompt", "repeat", "--interpretation-prompt", "Say{slots} !", "--seed", "3"],
        lambda model, tokenizer, paths, output: interpret.selfie.run(
            model,
            tokenizer,
            paths["examples"],
            output,
            new_tokens=3,
            prompt_output_tokens=2,
            layers=[0, 2],
            interpretation_prompts=["repeat", "Say{slots} !"],
            seed=3,
        ),
    ),
    "trace": (
        ["trace", "--facts", "{facts}", "--samples", "2", "--no-filter", "--window", "3", "--mediator", "hidden"]
        + ["--mediator", "mlp_window", "--noise", "0.3"],
        lambda model, tokenizer, paths, output: interpret.tracing.run(
            model,
            tokenizer,
            paths["facts"],
            output,
            settings=TraceSettings(samples=2, window=3, noise=0.3),
            mediators=["hidden", "mlp_window"],
            only_known=False,
        ),
    ),
    "attribute": (
        ["attribute", "--examples", "{examples}", "--steps", "0:1", "--step-score", "entropy"],
        lambda model, tokenizer, paths, output: interpret.attribution.run(
            model, tokenizer, paths["examples"], output, steps=(0, 1), step_scores=["entropy"]
        ),
    ),
    "attribute layers": (
        ["attribute", "--examples", "{examples}", "--method", "layer_integrated_gradients", "--option", "n_steps=4"]
        + ["--layers", "1,mlp_out.2", "--align", "0:0", "--attributed-fn", "logit", "--new-tokens", "2"],
        lambda model, tokenizer, paths, output: interpret.attribution.run(
            model,
            tokenizer,
            paths["examples"],
            output,
            method="layer_integrated_gradients",
            options={"n_steps": 4},
            layers=[1, "mlp_out.2"],
            align=[(0, 0)],
            attributed_fn="logit",
            new_tokens=2,
        ),
    ),
    "attribute prompt": (
        ["attribute", "--prompt", "The capital is", "--target", "Paris", "--foil", "Rome", "--steps", "0:1"],
        lambda model, tokenizer, paths, output: interpret.attribution.run(
            model,
            tokenizer,
            Prompt("prompt_1", "The capital is", "prompt", raw=True, target="Paris", foil="Rome"),
            output,
            steps=(0, 1),
        ),
    ),
    "locate": (
        ["locate", "--facts", "{facts}", "--no-filter", "--limit", "2"],
        lambda model, tokenizer, paths, output: interpret.locating.run(
            model, tokenizer, load_facts(paths["facts"]), output, only_known=False, limit=2
        ),
    ),
    "lens": (
        ["probe", "lens", "--examples", "{examples}", "--tokens", "0,-1", "--top", "2"],
        lambda model, tokenizer, paths, output: run_lens(
            model, tokenizer, paths["examples"], output, tokens="0,-1", top=2
        ),
    ),
    "logits": (
        ["probe", "logits", "--examples", "{examples}"],
        lambda model, tokenizer, paths, output: run_logits(model, tokenizer, paths["examples"], output),
    ),
    "heads": (
        ["probe", "heads", "--examples", "{examples}", "--top", "2"],
        lambda model, tokenizer, paths, output: run_heads(model, tokenizer, paths["examples"], output, top=2),
    ),
    "neurons": (
        ["probe", "neurons", "--pairs", "{pairs}", "--permutations", "20", "--layers", "0,2", "--token", "-2"],
        lambda model, tokenizer, paths, output: run_neurons(
            model, tokenizer, paths["pairs"], output, permutations=20, layers=[0, 2], token=-2
        ),
    ),
    "neurons of facts": (
        ["probe", "neurons", "--facts", "{facts}", "--layers", "1"],
        lambda model, tokenizer, paths, output: run_neurons(
            model, tokenizer, load_facts(paths["facts"]), output, layers="1"
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_from_python_leaves_the_commands_folder(case, model_folder, opened, examples, facts, pairs, tmp_path):
    words, call = CASES[case]
    paths = {"examples": examples, "facts": facts, "pairs": pairs}
    expected = of_command(tmp_path / "command", model_folder, *(paths.get(word[1:-1], word) for word in words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interpret.work.loop.say", lambda line: pytest.fail(line))
        made = call(*opened, paths, tmp_path / "python")
    assert contents(tmp_path / "python") == expected
    assert {"versions", "device"} <= made.manifest["circumstances"].keys()

    again = read_run(tmp_path / "python")
    assert again == made
    frame, records = again.to_frame(), again.records()
    assert len(frame) == len(records) == again.manifest["counts"]["rows"] > 0
    assert list(frame.columns) == columns(again.record_type)
    assert [row for rows in again.by_unit() for row in rows] == records
    assert len(again.units) == again.manifest["counts"]["in"]
    assert again.dropped == again.manifest["dropped"]


def test_a_command_resumes_what_python_began_and_the_other_way_round(model_folder, opened, facts, tmp_path):
    model, tokenizer = opened
    words = ["trace", "--facts", facts, "--samples", "2", "--no-filter", "--mediator", "hidden"]
    settings = {"settings": TraceSettings(samples=2), "only_known": False, "mediators": ["hidden"]}
    whole = of_command(tmp_path / "whole", model_folder, *words)
    interpret.tracing.run(model, tokenizer, facts, tmp_path / "a", limit=1, **settings, progress=False)
    assert of_command(tmp_path / "a", model_folder, *words) == whole
    of_command(tmp_path / "b", model_folder, *words, "--limit", "1")
    interpret.tracing.run(model, tokenizer, facts, tmp_path / "b", **settings, progress=False)
    assert contents(tmp_path / "b") == whole


def test_prompts_and_facts_need_no_file(opened, examples, facts, tmp_path):
    model, tokenizer = opened
    prompts, file = load_examples(examples), load_facts(facts)
    lens = run_lens(model, tokenizer, examples, tmp_path / "lens")
    again = run_lens(model, tokenizer, prompts, tmp_path / "again")
    assert again.records() == lens.records()
    assert again.manifest["identity"]["examples_sha256"] != lens.manifest["identity"]["examples_sha256"]
    with pytest.raises(RunError, match="examples_sha256"):
        run_lens(model, tokenizer, prompts[:1], tmp_path / "again")
    located = interpret.locating.run(model, tokenizer, file.facts, tmp_path / "facts", only_known=False)
    assert located.units == [fact.name for fact in file.facts]
    read = run_neurons(model, tokenizer, PAIRS, tmp_path / "neurons", layers=[0], permutations=5)
    assert len(read.records()) == model.config.intermediate_size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *of, **to: interpret.tracing.run(*of, [], **to), "facts is empty; give at least one fact"),
        (
            lambda *of, **to: interpret.tracing.run(*of, [Fact("a", "x is", "x", "y")] * 2, **to),
            "2 facts have the name 'a'",
        ),
        (lambda *of, **to: interpret.tracing.run(*of, "none.json", **to), "none.json does not exist"),
        (
            lambda *of, **to: interpret.tracing.run(*of, [Fact("a", "x is", "x", "y")], **to, mediators=["hiden"]),
            "unknown mediator 'hiden'; did you mean 'hidden'",
        ),
        (
            lambda *of, **to: interpret.locating.run(*of, [Fact("a", "x is", "x", "y")], **to, rule="word"),
            "unknown rule 'word'; did you mean 'words'",
        ),
        (lambda *of, **to: interpret.selfie.run(*of, ["I love pizza"], **to), r"examples\[0\] is 'I love pizza'"),
        (lambda *of, **to: interpret.selfie.run(*of, [], **to), "examples is empty"),
        (
            lambda *of, **to: interpret.selfie.run(*of, [Prompt("a", "x")], **to, interpretation_prompts=[]),
            "interpretation_prompts is empty",
        ),
        (
            lambda *of, **to: interpret.attribution.run(*of, Prompt("a", "x", raw=True), **to, steps="0;1"),
            "steps '0;1' is not understood; give first:end",
        ),
        (
            lambda *of, **to: interpret.attribution.run(*of, Prompt("a", "x", raw=True), **to, options=["n_steps"]),
            "option 'n_steps' has no value",
        ),
        (
            lambda model, tokenizer, **to: run_probe(model, tokenizer, "lense", [Prompt("a", "x")], **to),
            "unknown probe 'lense'; did you mean 'lens'",
        ),
        (
            lambda model, tokenizer, **to: run_probe(
                model, tokenizer, "lens", [Prompt("a", "x")], **to, options={"tops": 1}
            ),
            "probe 'lens': unknown option 'tops'; did you mean 'top'",
        ),
    ],
)
def test_a_wrong_argument_is_said_before_a_folder_is_made(call, message, opened, tmp_path):
    with pytest.raises(InputError, match=message):
        call(*opened, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_else_decides_the_numbers_is_compared_and_what_does_not_is_not(opened, examples, tmp_path):
    for place in ("here", "there"):
        made = run_lens(
            *opened, examples, tmp_path / "run", identity={"mine": 1}, circumstances={"place": place}, progress=False
        )
    assert (made.manifest["identity"]["mine"], made.manifest["circumstances"]["place"]) == (1, "here")
    with pytest.raises(RunError, match="mine: 1 in the folder, 2 now"):
        run_lens(*opened, examples, tmp_path / "run", identity={"mine": 2}, progress=False)


# ------------------------------------------------------------------------------------------------------ what is read


def test_a_frame_has_typed_cells(opened, examples, tmp_path):
    model, tokenizer = opened
    options = {"new_tokens": 3, "prompt_output_tokens": 2, "layers": [0, 2], "progress": False}
    frame = interpret.selfie.run(model, tokenizer, examples, tmp_path / "run", **options).to_frame()
    kinds = {name: str(frame[name].dtype) for name in frame.columns}
    assert kinds["token_idx"] == "Int64", "a control row has no token"
    assert kinds["gain_over_nothing"] == "float64"
    assert (kinds["says_more_than_controls"], kinds["prompt"]) == ("boolean", "str")
    assert frame["token_idx"].isna().sum() == 2
    assert all(isinstance(cell, list) for cell in frame["interpretation"])
    assert list(frame.columns) == columns(Interpretation)
    plain = pandas.read_csv(tmp_path / "run" / "table.csv", keep_default_na=False)
    assert frame["prompt"].tolist() == plain["prompt"].tolist()
    assert frame["interpretation"].tolist() == [json.loads(cell) for cell in plain["interpretation"]]
    heads = run_heads(model, tokenizer, examples, tmp_path / "heads", progress=False)
    assert str(heads.to_frame()["layer_idx"].dtype) == "int64"
    assert heads.to_frame()["attended_tokens"].tolist() == [row.attended_tokens for row in heads.records()]
    assert heads.record_type is HeadView


def test_a_table_without_rows_has_the_same_columns_and_types(opened, facts, tmp_path):
    model, tokenizer = opened
    unknown = [Fact("a", "The Eiffel Tower is in", "Eiffel Tower", "zebra")]
    empty = interpret.tracing.run(model, tokenizer, unknown, tmp_path / "run", progress=False)
    assert empty.dropped == {"a": empty.manifest["dropped"]["a"]}
    frame = empty.to_frame()
    assert (len(frame), list(frame.columns)) == (0, columns(TraceCell))
    assert str(frame["layer_idx"].dtype) == "int64"
    assert (tmp_path / "run" / "peaks.csv").read_text().count("\n") == 1


def test_attributions_come_back_as_one_attribution(opened, examples, tmp_path):
    model, tokenizer = opened
    made = interpret.attribution.run(model, tokenizer, examples, tmp_path / "run", steps="0:1", progress=False)
    found = interpret.attribution.attribution_of(read_run(tmp_path / "run"))
    assert len(found.sequences) == len(made.units) - len(made.dropped) == 2
    assert made.record_type is TokenScore
    assert found.info.attributed_fn == "contrast_prob_diff"


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder: it has no manifest.json"):
        read_run(tmp_path)


# ------------------------------------------------------------------------------------------------- which model it was


def test_a_model_tells_what_it_is(model_folder, opened, monkeypatch):
    model, _ = opened
    identity = model_identity(model)
    assert identity["model"] == str(model_folder)
    assert identity["weights"].startswith("sha256 ")
    assert (identity["dtype"], identity["load_in_8bit"], identity["load_in_4bit"]) == ("float32", False, False)
    monkeypatch.chdir(model_folder.parent)
    spelled, _ = load(f"./{model_folder.name}/", device="cpu", dtype="bfloat16")
    other = model_identity(spelled)
    assert (other["model"], other["dtype"]) == (f"./{model_folder.name}/", "bfloat16")
    assert other["weights"] == identity["weights"]


def test_quantized_layers_are_told(model_folder):
    model, _ = load(model_folder, device="cpu")
    identity = model_identity(quantize_(model, 8))
    assert (identity["load_in_8bit"], identity["load_in_4bit"]) == (True, False)


def test_the_demo_models_folder_is_the_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path))
    folder = saved_model(tmp_path / "SmolLM2-135M-Instruct")
    model, _ = load(folder, device="cpu")
    assert model_identity(model)["model"] == "demo"


def test_a_model_made_in_memory_is_told_by_its_tensors(llama):
    first = model_identity(llama)
    assert first["model"] == ""
    assert first["weights"].startswith("tensors ")
    assert model_identity(llama) == first
    weight = llama.get_output_embeddings().weight
    kept = weight.data.clone()
    weight.data += 1
    try:
        assert model_identity(llama)["weights"] != first["weights"]
    finally:
        weight.data.copy_(kept)


def test_noise_that_is_an_array_is_told_by_its_hash(opened, tmp_path):
    model, tokenizer = opened
    fact = Fact("a", "The Eiffel Tower is in", "Eiffel Tower", "Paris")
    shape = (1, len(tokenizer("The Eiffel Tower").input_ids) - len(tokenizer("The").input_ids))
    noise = np.random.default_rng(0).normal(size=(*shape, model.config.hidden_size))
    made = [
        interpret.tracing.run(
            model,
            tokenizer,
            [fact],
            tmp_path / str(number),
            settings=TraceSettings(noise=torch.tensor(noise + number).float().numpy()),
            mediators=["hidden"],
            only_known=False,
            progress=False,
        )
        for number in range(2)
    ]
    told = [one.manifest["identity"]["noise"] for one in made]
    assert told[0] != told[1]
    assert all(one.startswith("sha256 ") for one in told)
    assert [one.dropped for one in made] == [{}, {}]
