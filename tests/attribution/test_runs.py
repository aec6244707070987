"""``interpret attribute``: the files written, the output shown, wrong arguments, and interrupted runs."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import interpret
from interpret.attribution import _attribute, jobs, runs
from interpret.attribution.questions import Question, questions
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed
from interpret.attribution.rows import token_scores
from interpret.attribution.run_files import attribution_of
from interpret.cli.attribute import _cells
from interpret.errors import InputError, RunError
from interpret.prompts.prompts import Prompt, load_examples
from interpret.records import TokenScore
from interpret.storage import run_folder
from interpret.storage.run_folder import read_run
from reference.commands import json_file, run, run_killed
from reference.damage import DAMAGES, OUT_OF_MEMORY, cpu_too_large
from reference.memory import count, only_new_objects
from reference.tiny import wide_model
from reference.toy_tokenizers import sentence_piece

COMMAND = Path(interpret.__file__).with_name("__main__.py")
TEXT = "The Eiffel Tower is in"
CONTRAST = "contrast_prob_diff"


def entries(count=3, **changes):
    return [{"prompt": f"I love pizza {n}", "category": "abc"[n % 3], "raw": n != 1} | changes for n in range(count)]


def file_of(folder, rows):
    return json_file(folder / "examples.json", {"examples": rows})


def arguments(model_folder, examples, output, *more):
    paths = ["--model", str(model_folder), "--examples", str(examples), "--output", str(output)]
    return ["attribute", *paths, "--device", "cpu", "--new-tokens", "2", *(str(argument) for argument in more)]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """A single prompt without ``--output`` has its run folder in ``runs``."""
    monkeypatch.chdir(tmp_path)


def one(model_folder, *more):
    return run("attribute", "--model", model_folder, "--device", "cpu", "--prompt", TEXT, *more)


def table_of(folder):
    return run_folder.read_table(folder, TokenScore)


# ------------------------------------------------------------------------------------------------ what is written


def test_there_is_a_row_for_each_example_step_and_token_before_it(model_folder, opened, tmp_path):
    examples = file_of(tmp_path, entries())
    assert run(*arguments(model_folder, examples, tmp_path / "run")) == 0
    model, tokenizer = opened
    texts = [each.prompt for each in questions(tokenizer, load_examples(examples), "model")]
    found = [interpret.attribute(model, tokenizer, text, max_new_tokens=2).aggregate() for text in texts]
    frames = [each.to_frame() for each in found]
    rows = table_of(tmp_path / "run")
    assert len(rows) == sum(len(frame) for frame in frames)
    assert [row.score for row in rows] == [score for frame in frames for score in frame["score"]]
    assert [row.position for row in rows] == [position for frame in frames for position in frame["position"]]
    assert [row.step_token for row in rows] == [token for frame in frames for token in frame["step_token"]]
    assert list(dict.fromkeys(row.name for row in rows)) == ["a_1", "b_1", "c_1"]
    lengths = dict(zip(("a_1", "b_1", "c_1"), (len(tokenizer(text).input_ids) for text in texts), strict=True))
    assert [row.in_prompt for row in rows] == [row.position < lengths[row.name] for row in rows]
    values = [each.sequences[0].step_scores["probability"].tolist() for each in found]
    assert [row.value for row in rows if row.position == 0] == [value for of_one in values for value in of_one]
    assert run("report", tmp_path / "run", "-o", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<section class="input"') == 3
    assert run("figures", tmp_path / "run", "-o", tmp_path / "figures", "--prompts", 2) == 0
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {"a_1.png", "b_1.png"}


@pytest.mark.parametrize("target", ["Paris", " Paris"])
def test_one_space_stands_between_a_prompt_and_its_target(model_folder, opened, tmp_path, target):
    assert one(model_folder, "--target", target, "--json", tmp_path / "out.json") == 0
    (found,) = Attribution.load(tmp_path / "out.json").sequences
    assert list(found.token_ids) == opened[1](f"{TEXT} Paris").input_ids


def test_layer_methods_have_rows_of_each_activation(model_folder, opened, tmp_path):
    examples = file_of(tmp_path, entries(2, target="yes"))
    more = ["--method", "layer_gradient_x_activation", "--layers", "mlp_out,-1,0:2", "--steps", "0:1"]
    assert run(*arguments(model_folder, examples, tmp_path / "run", *more)) == 0
    model, tokenizer = opened
    asked = questions(tokenizer, load_examples(examples), "model")
    lengths = [len(tokenizer(each.prompt).input_ids) for each in asked]
    n_layers = model.config.num_hidden_layers
    activations = {f"mlp_out.{layer}" for layer in range(n_layers)}
    activations |= {f"{site}.{layer}" for site in ("resid_post", "attn_out") for layer in (0, 1, n_layers - 1)}
    rows = table_of(tmp_path / "run")
    assert {row.activation for row in rows} == activations
    assert len(rows) == sum(lengths) * len(activations)
    assert all(row.in_prompt for row in rows)


def test_all_layers_are_asked_for_by_word(model_folder, tmp_path):
    examples = file_of(tmp_path, entries(1, target="yes"))
    more = ["--method", "layer_gradient_x_activation", "--layers", "all", "--steps", "0:1"]
    assert run(*arguments(model_folder, examples, tmp_path / "run", *more)) == 0
    assert {row.activation for row in table_of(tmp_path / "run")} >= {"resid_post.0", "attn_out.3", "mlp_out.2"}


def test_a_chat_prompt_is_read_with_its_template_once(opened, tmp_path):
    _, tokenizer = opened
    raw, chat = questions(
        tokenizer, [Prompt("a", TEXT, "a", raw=True), Prompt("b", TEXT, "b", raw=False)], chat_template="model"
    )
    assert raw.prompt == TEXT
    assert TEXT in chat.prompt
    assert chat.prompt != TEXT


def test_a_beginning_the_template_writes_is_not_written_twice(tmp_path):
    tokenizer = sentence_piece()  # puts <s> before every text
    template = "<s>[INST] {prompt}"
    prompts = [Prompt("b", "abc", "b")]
    found = runs.run(
        wide_model("llama"), tokenizer, prompts, tmp_path / "run",
        chat_template=template, new_tokens=1, progress=False,
    )  # fmt: skip
    ids = attribution_of(found).sequences[0].token_ids
    assert ids[:-1] == tuple(tokenizer("[INST] abc").input_ids)


def test_step_scores_stand_beside_the_scores(model_folder, tmp_path):
    examples = file_of(tmp_path, entries(1))
    assert run(*arguments(model_folder, examples, tmp_path / "run", "--step-score", "logit")) == 0
    rows = table_of(tmp_path / "run")
    assert {tuple(row.step_score_names) for row in rows} == {("logit",)}
    assert all(len(row.step_scores) == 1 and np.isfinite(row.step_scores[0]) for row in rows)


def test_options_reach_the_method_and_the_reduction(model_folder, opened, tmp_path):
    examples = file_of(tmp_path, entries(1, target="yes"))
    more = ["--method", "integrated_gradients", "--option", "n_steps=3", "--option", "baseline=mean"]
    more += ["--aggregate", "l2", "--normalize", "--subwords"]
    assert run(*arguments(model_folder, examples, tmp_path / "run", *more)) == 0
    options = {"method": "integrated_gradients", "n_steps": 3, "baseline": "mean"}
    expected = interpret.attribute(*opened, "I love pizza 0", "I love pizza 0 yes", **options)
    expected = expected.aggregate("l2", normalize=True, subwords=True).to_frame()
    assert [row.score for row in table_of(tmp_path / "run")] == expected["score"].tolist()


def test_the_json_is_the_whole_attribution_and_the_page_shows_it(model_folder, opened, tmp_path, capsys):
    files = ["--json", tmp_path / "out.json", "--html", tmp_path / "page.html"]
    assert one(model_folder, "--target", "Paris", "--foil", "Rome", "--align", "0:0", "--steps", "0:1", *files) == 0
    found = Attribution.load(tmp_path / "out.json")
    expected = interpret.attribute(
        *opened,
        TEXT,
        f"{TEXT} Paris",
        attributed_fn="contrast_prob_diff",
        contrast_targets=f"{TEXT} Rome",
        contrast="same_context",
        alignment=[[(0, 0)]],
        start=0,
        end=1,
    ).aggregate()
    np.testing.assert_array_equal(found.sequences[0].scores, expected.sequences[0].scores)
    assert found.info == expected.info
    assert "contrast_prob_diff" in (tmp_path / "page.html").read_text()
    said = capsys.readouterr()
    title = "Attribution of P(Paris) − P(·) by input_x_gradient, same_context; unit: probability difference"
    assert title in said.out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("attributions-the-eiffel-tower-is-in-")
    assert f"rows in runs/{folder.name}/table.csv" in said.out


@pytest.mark.parametrize("n_prompts", [3, 12])
def test_one_prompt_is_held_at_a_time_whatever_is_written(model_folder, tmp_path, monkeypatch, n_prompts):
    stored, read, most = Attribution.load, [], []

    def counted(path):
        most.append(count(Attributed))
        read.append(path.name)
        return stored(path)

    monkeypatch.setattr(Attribution, "load", counted)
    files = ["--json", tmp_path / "out.json.gz", "--html", tmp_path / "page.html"]
    argv = [*arguments(model_folder, file_of(tmp_path, entries(n_prompts)), tmp_path / "run"), *files]
    with only_new_objects():
        assert run(*argv) == 0
    assert len(set(read)) == n_prompts
    assert max(most) <= 3
    monkeypatch.undo()
    assert len(Attribution.load(tmp_path / "out.json.gz").sequences) == n_prompts
    page = (tmp_path / "page.html").read_text()
    assert page.count('<section class="input"') == page.count('<a href="#input-') == n_prompts


def test_what_is_not_shown_is_counted(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, entries(6, target="the city, extra")), tmp_path / "run")
    assert run(*argv) == 0
    steps = {(row.name, row.step) for row in table_of(tmp_path / "run")}
    of_each = len(steps) // 6
    assert (of_each * 2 < 10 < of_each * 3, len(steps) % 6) == (True, 0)
    assert f"and {of_each * 3 - 10} more steps and 3 more prompts" in capsys.readouterr().out


def test_the_largest_absolute_scores_are_shown():
    plain = {"name": "a", "step_token": "x", "value": 0.5, "token": "t", "activation": "", "in_prompt": True}
    rows = [SimpleNamespace(score=score, position=n, **plain) for n, score in enumerate((0.1, -0.9, 0.2, 0.3))]
    assert _cells(rows, with_source=False) == ("a", "x", "0.5", "1 t -0.9, 3 t +0.3, 2 t +0.2")


def test_giving_a_default_explicitly_is_the_same_run(model_folder, tmp_path):
    argv = arguments(model_folder, file_of(tmp_path, entries(1, target="yes")), tmp_path / "run")
    assert run(*argv) == run(*argv, "--attributed-fn", "probability") == 0


def test_prompts_are_counted_where_steps_just_fit(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, entries(12, target="yes")), tmp_path / "run", "--steps", "0:1")
    assert run(*argv) == 0
    assert "\nand 2 more prompts\n" in capsys.readouterr().out


def test_of_many_prompts_that_cannot_be_attributed_the_first_are_listed(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, entries(12)), tmp_path / "run", "--attributed-fn", CONTRAST)
    assert run(*argv) == 3
    said = capsys.readouterr().err
    assert said.count(": not attributed: there is no foil") == 10
    assert said.endswith(f"and 2 more, see 'dropped' in {tmp_path / 'run' / 'manifest.json'}\n")


def test_a_prompt_that_cannot_be_attributed_is_dropped_with_its_reason(model_folder, tmp_path, capsys):
    rows = entries(3, target="yes", foil="sun")
    del rows[1]["foil"]
    argv = arguments(model_folder, file_of(tmp_path, rows), tmp_path / "run", "--attributed-fn", "contrast_prob_diff")
    argv += ["--align", "0:0", "--steps", "0:1"]
    for _ in range(2):  # the second time, from the run
        assert run(*argv) == 3
        captured = capsys.readouterr()
        assert "3 prompts: 2 attributed, 1 dropped (1 not attributed)" in captured.out
        assert "b_1: not attributed: there is no foil" in captured.err
    assert {row.name for row in table_of(tmp_path / "run")} == {"a_1", "c_1"}


def test_rows_have_the_foil_of_each_token(model_folder, opened, tmp_path):
    examples = file_of(tmp_path, entries(1, target="yes", foil="sun"))
    assert run(*arguments(model_folder, examples, tmp_path / "run", "--steps", "0:1")) == 0
    first = opened[1].decode(opened[1](" sun").input_ids[:1])
    assert {row.foil_token for row in table_of(tmp_path / "run")} == {first}
    assert run(*arguments(model_folder, examples, tmp_path / "without", "--attributed-fn", "probability")) == 0
    assert {row.foil_token for row in table_of(tmp_path / "without")} == {""}


def test_a_message_says_that_foils_of_only_some_prompts_are_ignored(model_folder, tmp_path, capsys):
    rows = entries(2, target="yes", foil="sun")
    del rows[1]["foil"]
    assert run(*arguments(model_folder, file_of(tmp_path, rows), tmp_path / "run")) == 0
    message = "only 1 of 2 prompts have a foil; probability is attributed and foils are ignored (see --attributed-fn)"
    assert message in " ".join(capsys.readouterr().err.split())
    assert {row.foil_token for row in table_of(tmp_path / "run")} == {""}


def test_a_score_that_is_not_finite_is_kept_and_one_that_is_alone_refused(opened):
    found = interpret.attribute(*opened, TEXT, max_new_tokens=1).aggregate()
    before = token_scores(Question("a", TEXT, True, None, None), found)
    scores = found.sequences[0].scores
    scores[1, 0] = np.nan
    rows = token_scores(Question("a", TEXT, True, None, None), found)
    assert math.isnan(rows[1].score)
    assert rows[:1] + rows[2:] == before[:1] + before[2:]
    scores[:] = np.nan
    with pytest.raises(InputError, match=r"^scores are not finite; open the model in float32.*: it gives NaN$"):
        token_scores(Question("a", TEXT, True, None, None), found)


# ------------------------------------------------------------------------------------------------ resuming a run


def test_a_killed_run_resumes_to_the_same_table_as_an_uninterrupted_run(model_folder, tmp_path):
    examples = file_of(tmp_path, entries(6))
    argv = arguments(model_folder, examples, tmp_path / "killed")
    run_killed(COMMAND, *argv)
    assert {row.name for row in table_of(tmp_path / "killed")} == {"a_1", "b_1", "c_1"}
    # As if killed after the next prompt's file was written and before its rows were.
    (tmp_path / "killed" / "attributions" / "00003.json.gz").write_bytes(b"of a run before")
    more = ["--json", tmp_path / "out.json"]
    assert run(*argv, *more) == 0
    assert run(*arguments(model_folder, examples, tmp_path / "whole")) == 0
    assert (tmp_path / "killed" / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
    assert len(Attribution.load(tmp_path / "out.json").sequences) == 6


def test_a_finished_run_is_shown_again_without_work(model_folder, tmp_path, capsys, monkeypatch):
    argv = arguments(model_folder, file_of(tmp_path, entries()), tmp_path / "run")
    assert run(*argv) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(jobs, "attributions", None)
    assert run(*argv) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert "3 of 3 prompts are already done" in again.err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_attribution_of_a_finished_run_is_noticed_and_made_again(opened, tmp_path, capsys, damage):
    prompts = [Prompt(name, text, raw=True, target="is") for name, text in (("a", "The Eiffel Tower"), ("b", "Japan"))]
    runs.run(*opened, prompts, tmp_path / "run", method="saliency")
    lost = tmp_path / "run" / "attributions" / "00001.json.gz"
    whole, table = lost.read_bytes(), (tmp_path / "run" / "table.csv").read_bytes()
    damage(lost)
    capsys.readouterr()
    with pytest.raises(RunError, match=r"00001\.json\.gz is missing or was changed; the command of the run makes it"):
        list(attribution_of(read_run(tmp_path / "run")).sequences)
    runs.run(*opened, prompts, tmp_path / "run", method="saliency")
    said = capsys.readouterr().err
    assert "files of 1 finished prompts are missing or changed, and are made again, such as of 'b'" in said
    assert (lost.read_bytes(), (tmp_path / "run" / "table.csv").read_bytes()) == (whole, table)
    assert len(list(attribution_of(read_run(tmp_path / "run")).sequences)) == 2


def test_an_attribution_that_is_consistent_but_another_is_noticed(opened, tmp_path, capsys):
    """The checksum inside the compressed file is right: only the journal tells that it is not the run's."""
    prompts = [Prompt(name, text, raw=True, target="is") for name, text in (("a", "The Eiffel Tower"), ("b", "Japan"))]
    runs.run(*opened, prompts, tmp_path / "run", method="saliency")
    first, second = (tmp_path / "run" / "attributions" / f"0000{number}.json.gz" for number in (0, 1))
    whole = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(RunError, match="was changed"):
        list(attribution_of(read_run(tmp_path / "run")).sequences)
    runs.run(*opened, prompts, tmp_path / "run", method="saliency")
    assert second.read_bytes() == whole


def test_the_table_of_saliency_has_the_norms_of_the_gradients(opened, tmp_path):
    model, tokenizer = opened
    found = runs.run(model, tokenizer, Prompt("a", "The Eiffel Tower", raw=True, target="is"), tmp_path / "run",
                     method="saliency", steps="0:1")  # fmt: skip
    ids = tokenizer("The Eiffel Tower").input_ids
    target = tokenizer("The Eiffel Tower is").input_ids[len(ids)]
    x = model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
    model(inputs_embeds=x).logits[0, -1].softmax(-1)[target].backward()
    assert x.grad is not None
    scores = [row.score for row in found.records()]
    np.testing.assert_allclose(scores, x.grad[0].norm(dim=-1).numpy(), rtol=1e-4)
    assert found.manifest["identity"]["aggregate"] == "l2"
    model.zero_grad()


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
def test_a_prompt_that_does_not_fit_in_memory_is_dropped_and_the_run_goes_on(
    model_folder, tmp_path, capsys, monkeypatch, too_large
):
    real = _attribute.attributed

    def refusing(plan, text, parts):
        return too_large() if parts.stored.unit == "b_1" else real(plan, text, parts)

    monkeypatch.setattr(_attribute, "attributed", refusing)
    argv = arguments(model_folder, file_of(tmp_path, entries(3)), tmp_path / "run")
    assert run(*argv) == 3
    found = read_run(tmp_path / "run")
    assert {row.name for row in found.records()} == {"a_1", "c_1"}
    assert list(found.dropped) == ["b_1"]
    assert found.dropped["b_1"].startswith("not attributed: a text of ")
    assert "3 prompts: 2 attributed, 1 dropped (1 not attributed)" in capsys.readouterr().out


def test_a_damaged_attribution_of_a_prompt_that_does_not_fit_any_more_is_told(opened, tmp_path, capsys, monkeypatch):
    prompts = [Prompt("a", "Japan", raw=True, target="is")]
    runs.run(*opened, prompts, tmp_path / "run")
    file = tmp_path / "run" / "attributions" / "00000.json.gz"
    whole = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(_attribute, "attributed", cpu_too_large)
    runs.run(*opened, prompts, tmp_path / "run")
    assert "the files of 'a' are not made again: not attributed: a text of " in capsys.readouterr().err
    monkeypatch.undo()
    runs.run(*opened, prompts, tmp_path / "run")
    assert file.read_bytes() == whole


def test_another_method_is_another_run(model_folder, tmp_path, capsys):
    examples = file_of(tmp_path, entries(1))
    assert run(*arguments(model_folder, examples, tmp_path / "run")) == 0
    assert run(*arguments(model_folder, examples, tmp_path / "run", "--method", "saliency")) == 2
    assert 'method: "input_x_gradient" in the folder, "saliency" now' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ errors


ALIGN = "give --align, such as 0:0,1:0, pairs (token of the target, token of the foil)"
FIRST = "or attribute only the first token, with --steps 0:1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--method", "salience"], "unknown method 'salience'; did you mean 'saliency'?"),
        (["--aggregate", ""], "unknown aggregate ''; Allowed: sum, l2, mean"),
        (["--attributed-fn", "prob"], "unknown step function 'prob'"),
        (["--step-score", "entrop"], "unknown step function 'entrop'; did you mean 'entropy'?"),
        (["--layers", "3"], "method 'input_x_gradient' takes no layers; leave layers out"),
        (["--method", "layer_deeplift", "--layers", "mlp_ou"], "unknown activation 'mlp_ou'; did you mean 'mlp_out'?"),
        (["--method", "layer_deeplift", "--layers", "99"], "layer 99 does not exist; there are layers 0 to "),
        (["--option", "n_steps"], "--option 'n_steps' has no value; write it as name=value, such as n_steps=20"),
        (["--option", "steps=3"], "method 'input_x_gradient': unknown option 'steps'"),
        (["--aggregate", "max"], "unknown aggregate 'max'"),
        (["--steps", "1"], "--steps '1' is not understood; give first:end, such as 0:1"),
        (["--align", "0-0"], "--align '0-0' is not understood; give pairs of numbers, such as 0:0,2:1"),
        (["--foil", "Rome", "--contrast", "same"], "unknown contrast 'same'; Allowed: same_context, own_prefix"),
        (["--foil", "Rome", "--attributed-fn", "logit"], "no function uses the contrast: give 'contrast_prob_diff'"),
        (["--attributed-fn", "contrast_prob_diff"], "there is no foil; give one, with --foil"),
        (["--target", "the city", "--foil", "extra cheese pizza"], f"the foil has 3 tokens, the target 2: {ALIGN}"),
        (["--target", ""], "--target is empty; leave it out, or give the words that follow the prompt"),
        (["--target", "Paris", "--foil", ""], "--foil is empty; leave it out, or give the words that follow"),
        (["--target", "city " * 900], "the target has "),
        (["--target", "the city", "--steps", "5:"], "the prompt: start=5 and end=None select none of the 2 tokens"),
        (["--target", "a", "--foil", "city " * 900], "the foil has "),
        (
            ["--source-language", "en"],
            "--source-language and --target-language are for translation models; leave them out",
        ),
        (["--examples", "x.json"], "give either --prompt with a text or --examples with a file of prompts"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(model_folder, tmp_path, capsys, change, message):
    assert one(model_folder, "--output", tmp_path / "run", *change) == 2
    said = capsys.readouterr().err
    assert message in said.partition("error: ")[2]
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists(), "the corrected command would be taken for another run"


def test_an_alignment_of_what_is_written_is_asked_for_by_its_option(model_folder, capsys):
    assert one(model_folder, "--foil", "extra cheese pizza", "--new-tokens", "1") == 2
    assert f"the foil has 3 tokens, the target 1: {ALIGN}, {FIRST}" in capsys.readouterr().err
    assert one(model_folder, "--foil", "extra cheese pizza", "--new-tokens", "1", "--steps", "0:1") == 0


def test_a_file_that_is_there_is_refused_before_any_work(model_folder, tmp_path, capsys):
    (tmp_path / "page.html").write_text("mine")
    assert one(model_folder, "--html", tmp_path / "page.html") == 2
    said = capsys.readouterr().err
    assert f"error: {tmp_path / 'page.html'} already exists; give --overwrite to replace it, or another name" in said
    assert "opening" not in said
    assert (tmp_path / "page.html").read_text() == "mine"
    assert one(model_folder, "--html", tmp_path / "page.html", "--overwrite") == 0
    assert (tmp_path / "page.html").read_text() != "mine"


def test_targets_in_a_file_are_keys_not_options(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, entries()), tmp_path / "run", "--target", "Paris")
    assert run(*argv) == 2
    assert 'give "target" and "foil" as keys in the file, not as options' in capsys.readouterr().err


@pytest.mark.parametrize("key", ["target", "foil"])
def test_empty_words_in_a_file_are_refused(tmp_path, key):
    with pytest.raises(InputError, match=rf'examples\[0\]: "{key}" is empty; leave it out, or give the words'):
        load_examples(file_of(tmp_path, entries(1, **{key: ""})))
