"""One prompt given by options, a file of any form and rows in Python: the same run, in every command."""

import csv
import re
from pathlib import Path
from tempfile import mkdtemp

import pytest
from typer.main import get_command

import interpret
from interpret.cli import make_app
from interpret.cli.options import Loading
from interpret.facts.grids import FEWEST, BucketMean, too_few
from interpret.facts.runs import fact_file
from interpret.prompts import load_examples
from interpret.tracing.inputs import TraceSettings
from reference.commands import fact_rows, json_file, run

TOP = Path(__file__).parents[2]
ROW = {"prompt": "The Eiffel Tower is in", "subject": "Eiffel Tower", "target": "the city", "foil": "extra pizza"}
SELFIE = {"layers": "0,2", "new_tokens": 3, "prompt_output_tokens": 2, "tokens": "subject"}
PROBES = interpret.probing

COMMANDS = {
    "selfie": ("subject", SELFIE, interpret.selfie.run),
    "trace": ("subject target", {"mediators": ["hidden"], "settings": TraceSettings(samples=2)}, interpret.tracing.run),
    "locate": ("subject target foil", {}, interpret.locating.run),
    "attribute": ("target foil", {"steps": "0:1"}, interpret.attribution.run),
    "probe lens": ("subject target foil", {"tokens": "subject_last"}, PROBES.run_lens),
    "probe logits": ("target foil", {}, PROBES.run_logits),
    "probe heads": ("subject", {"tokens": "subject"}, PROBES.run_heads),
}
"""Command -> the keys of a row it has options for, options, and its Python function."""
OF_FACTS = ("trace", "locate")
MORE = {"trace": ["--samples", "2", "--mediator", "hidden", "--no-filter"], "locate": ["--no-filter"]}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def opened_once(model_folder, opened, monkeypatch):
    """The tiny model is opened once for all commands of this file."""
    load = Loading.load
    monkeypatch.setattr(Loading, "load", lambda self, name: opened if name == str(model_folder) else load(self, name))


def options(command):
    keys, more, _ = COMMANDS[command]
    words = [word for name, value in more.items() for word in (f"--{name.replace('_', '-')}", value)]
    return keys.split(), MORE.get(command, words)


def ran(command, model_folder, *words):
    """Run a command with a run folder of its own, and return its table."""
    output = Path(mkdtemp(dir=".")) / "run"
    argv = ["--model", model_folder, "--device", "cpu", "--output", output, *options(command)[1]]
    assert run(*command.split(), *argv, *words) == 0
    return (output / "table.csv").read_bytes()


def file_option(command):
    return "--facts" if command in OF_FACTS else "--examples"


def row_of(command, **changes):
    return {key: ROW[key] for key in ("prompt", *options(command)[0])} | changes


def words_of(row):
    return [word for key, value in row.items() for word in (f"--{key}", value)]


def files_of(command, row):
    """Write a row in every form."""
    within = "facts" if command in OF_FACTS else "examples"
    yield json_file(Path("a.json"), {within: [row]})
    yield json_file(Path("list.json"), [row])
    yield json_file(Path("a.jsonl"), row)
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with Path(name).open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([row.keys(), row.values()])
        yield Path(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_and_files_of_every_form_give_the_same_table(command, model_folder, opened):
    row = row_of(command)
    table = ran(command, model_folder, *words_of(row))
    assert table.count(b"\n") > 1
    for path in files_of(command, row):
        assert ran(command, model_folder, file_option(command), path) == table, path
    _, more, call = COMMANDS[command]
    only_known = {"only_known": False} if command in OF_FACTS else {}
    made = call(*opened, [row], "python", progress=False, **more, **only_known)
    assert (made.folder / "table.csv").read_bytes() == table


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_model_reads_is_decided_alike(command, model_folder, opened):
    row, template = row_of(command), "say {prompt} !"
    plain = ran(command, model_folder, *words_of(row))
    raw = ran(command, model_folder, *words_of(row), "--raw")
    framed = ran(command, model_folder, *words_of(row), "--chat-template", template)
    message = ran(command, model_folder, *words_of(row), "--chat-template", "model")
    assert len({raw, framed, message}) == 3
    continued = command in OF_FACTS or "target" in row
    assert plain == (raw if continued else message)
    path = json_file(Path("a.json"), {"examples": [row]} if command not in OF_FACTS else [row])
    assert ran(command, model_folder, file_option(command), path, "--chat-template", template) == framed
    assert ran(command, model_folder, file_option(command), path, "--raw") == raw
    if command not in OF_FACTS:
        for said, same in ((True, raw), (False, message)):
            path = json_file(Path("a.json"), {"examples": [row | {"raw": said}]})
            assert ran(command, model_folder, "--examples", path) == same
        _, more, call = COMMANDS[command]
        made = call(*opened, [row], "python", progress=False, chat_template=template, **more)
        assert (made.folder / "table.csv").read_bytes() == framed


def test_a_single_prompt_has_a_run_folder_of_its_own(model_folder, capsys):
    argv = ["probe", "lens", "--model", model_folder, "--device", "cpu", "--prompt", "Rome? It is in"]
    for more in ([], ["--top", "2"], []):
        assert run(*argv, *more) == 0
    folders = sorted(path.name for path in Path("runs").iterdir())
    assert len(folders) == 2, "the same command resumes its run, another has another folder"
    assert all(re.fullmatch(r"lens-rome-it-is-in-[0-9a-f]{6}", name) for name in folders)
    assert "1 of 1 prompts are already done" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_neither_and_both_of_prompt_and_file_are_refused(command, capsys):
    option, path = file_option(command), json_file(Path("a.json"), [row_of(command)])
    words = [*command.split(), "--model", "./none"]
    for given in ([], ["--prompt", "Rome", option, path]):
        assert run(*words, *given) == 2
        assert f"error: give either --prompt with a text or {option} with a file of" in capsys.readouterr().err
    key = options(command)[0][0]
    assert run(*words, option, path, f"--{key}", "Rome") == 2
    assert f'with {option}, give "' in capsys.readouterr().err


# --------------------------------------------------------------------------------- before the model is opened

BAD = {
    "selfie": [
        (["--prompt", " "], "--prompt is empty"),
        (["--subject", "Oslo"], "--subject 'Oslo' is not a part of the prompt"),
        (["--layers", "x"], "unknown layer selector 'x'"),
        (["--tokens", "contnt"], "unknown token selector 'contnt'; did you mean 'content'?"),
        (["--tokens", "subject"], "needs a \"subject\", which this prompt does not have"),
        (["--site", "atn_out"], "unknown site 'atn_out'"),
        (["--insertion-layer", "one"], "insertion layer is 'one'"),
        (["--replacing-mode", "add"], "unknown replacing mode 'add'"),
        (["--overlay-strength", "2"], "insertion: --overlay-strength 2.0 is outside 0 to 1"),
        (["--interpretation-prompt", "sumarize"], "unknown interpretation prompt 'sumarize'"),
        (["--chat-template", "x"], "chat template 'x' must contain {prompt} exactly once"),
        (["--chat-template", "model", "--raw"], "--raw and --chat-template exclude each other"),
        (["--dtype", "float23"], "unknown dtype 'float23'"),
        (["--device", "gpu"], "device 'gpu' is not a device"),
        (["--load-in-8bit", "--load-in-4bit"], "--load-in-8bit and --load-in-4bit exclude each other"),
    ],
    "trace": [
        (["--subject", "Oslo"], "--subject 'Oslo' is not a part of the prompt"),
        (["--target", " "], "--target is empty"),
        (["--mediator", "hiden"], "unknown mediator 'hiden'"),
        (["--noise", "x3"], "noise 'x3' is not understood"),
        (["--answer-tokens", "frist"], "unknown --answer-tokens 'frist'"),
        (["--rule", "word"], "unknown rule 'word'"),
        (["--method", "exat"], "unknown method 'exat'"),
        (["--chat-template", "x"], "chat template 'x' must contain"),
    ],
    "locate": [
        (["--foil", ""], "--foil is empty; leave it out, or give a wrong answer"),
        (["--attributed-fn", "prob"], "unknown step function 'prob'"),
        (["--rule", "word"], "unknown rule 'word'"),
        (["--chat-template", "x"], "chat template 'x' must contain"),
    ],
    "attribute": [
        (["--target-ids", "a"], "--target-ids 'a' is not understood; give token ids, such as 3564,11"),
        (["--foil", "b", "--foil-ids", "3"], "--foil and --foil-ids both give what follows the prompt"),
        (["--method", "salience"], "unknown method 'salience'"),
        (["--option", "steps=3"], "method 'input_x_gradient': unknown option 'steps'"),
        (["--layers", "3"], "method 'input_x_gradient' takes no layers"),
        (["--steps", "1"], "--steps '1' is not understood"),
        (["--chat-template", "x"], "chat template 'x' must contain"),
    ],
    "probe lens": [
        (["--tokens", "lsat"], "unknown token selector 'lsat'; did you mean 'last'?"),
        (["--tokens", "subject"], "needs a \"subject\""),
        (["--target", ""], "--target is empty"),
        (["--chat-template", "x"], "chat template 'x' must contain"),
    ],
    "probe logits": [(["--foil", ""], "--foil is empty")],
    "probe heads": [(["--tokens", "subject_last"], "needs a \"subject\"")],
    "probe neurons": [
        (["--layers", "x"], "unknown layer selector 'x'"),
        (["--token", "frist"], "unknown token 'frist'; Allowed: last, mean"),
    ],
}  # fmt: skip
CASES = [(command, words, message) for command, cases in BAD.items() for words, message in cases]


@pytest.mark.parametrize(("command", "words", "message"), CASES, ids=[f"{one[0]} {' '.join(one[1])}" for one in CASES])
def test_a_wrong_argument_is_said_before_the_model_is_opened(command, words, message, capsys):
    """The model would be an error, too, so that only what is checked before it is said."""
    given = {"--prompt": "The Eiffel Tower is in"}
    if command in OF_FACTS:
        given |= {"--subject": "Eiffel Tower", "--target": "Paris"}
    if command == "locate" and "--foil" not in words:
        given |= {"--foil": "Rome"}
    if command == "probe neurons":
        given = {"--pairs": str(TOP / "examples" / "pairs.json")}
    argv = [*command.split(), "--model", "./none", *(word for both in given.items() for word in both)]
    assert run(*argv, *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "there is no folder" not in said
    assert not Path("runs").exists()
    argv += ["--foil", "Rome"] * (command == "locate" and "--foil" in words)
    assert run(*argv) == 2
    assert "there is no folder './none'" in capsys.readouterr().err, "without it, the model is reached"


# ------------------------------------------------------------------------------------------------ what is printed


def test_the_version_is_told_without_loading_a_model_library(capsys):
    assert run("--version") == 0
    assert re.fullmatch(
        r"llm-interpret 0\.1\.0, transformers [\d.]+, torch \S+, python [\d.]+\n", capsys.readouterr().out
    )


@pytest.mark.parametrize("line", ["", "probe", "trace", "probe lens", "check"])
def test_help_has_a_short_option(line, capsys):
    assert run(*line.split(), "-h") == 0
    short = capsys.readouterr().out
    assert run(*line.split(), "--help") == 0
    assert capsys.readouterr().out == short


def test_every_help_tells_the_same_default_of_chat_templates(capsys):
    said = set()
    for command in COMMANDS:
        assert run(*command.split(), "--help") == 0
        (words,) = re.findall(r"\[default: (facts, .*?)\]", " ".join(capsys.readouterr().out.split()))
        said.add(words)
    assert len(said) == 1


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_a_quiet_command_prints_only_errors_and_reasons(option, model_folder, capsys):
    argv = ["trace", "--model", model_folder, "--device", "cpu", "--no-filter", "--samples", "2", option]
    facts = json_file(Path("facts.json"), [*fact_rows(2), {"prompt": "nobody"}])
    assert run(*argv, "--facts", facts, "--output", "runs/a") == 3
    assert capsys.readouterr() == ("", 'row_2: bad row: row 2: "subject" is missing\n')
    assert run(*argv, "--facts", "none.json") == 2
    assert capsys.readouterr().err.startswith("error: none.json does not exist")
    assert run("trace", "--model", model_folder, "--device", "cpu", "--no-filter", "--samples", "2", "--facts", facts,
               "--output", "runs/a") == 3  # fmt: skip
    assert "2 traced" in capsys.readouterr().out, "the next command is not quiet"


def test_what_is_not_shown_is_counted(model_folder, capsys):
    argv = ["--model", model_folder, "--device", "cpu", "--prompt", "I love pizza"]
    quick = ["--new-tokens", "2", "--prompt-output-tokens", "1", "--tokens", "all"]
    assert run("selfie", *argv, *quick, "--layers", "all", "--output", "runs/a") == 0
    said = capsys.readouterr().out
    rows = len(interpret.storage.read_run("runs/a").records())
    assert f"and {rows - 10} more rows in table.csv\n" in said
    assert f"{rows} rows in runs/a/table.csv\n" in said
    prompts = json_file(Path("a.json"), ["I love pizza", "I love apples", "Rome"])
    assert run("probe", "lens", *argv[:4], "--examples", prompts, "--tokens", "0,-1", "--output", "runs/lens") == 0
    assert "and 1 more token and 2 more prompts in table.csv\n" in capsys.readouterr().out
    model, _ = interpret.load(model_folder, device="cpu")
    n_heads = model.config.num_hidden_layers * model.config.num_attention_heads
    assert run("probe", "heads", *argv) == 0
    assert f"and {n_heads - 10} more heads in table.csv\n" in capsys.readouterr().out
    texts = [{"true": f"{one} is wet", "false": f"{one} is dry"} for one in ("Tea", "Sea")]
    pairs = json_file(Path("pairs.json"), texts)
    assert run("probe", "neurons", *argv[:4], "--pairs", pairs) == 0
    said = capsys.readouterr()
    n_neurons = model.config.num_hidden_layers * model.config.intermediate_size
    assert f"and {n_neurons - 10} more neurons in table.csv\n" in said.out
    assert "2 pairs are too few: no neuron can have p below 0.5; use about a hundred" in said.err


@pytest.mark.parametrize("n_facts", [1, 2])
def test_averages_over_too_few_facts_say_so(n_facts, model_folder, capsys):
    words_of_few = {
        1: "these are the numbers of a single fact, not averages; there are no intervals",
        2: "averages over fewer than 10 facts are unreliable, and their 95% intervals too narrow",
    }
    facts = json_file(Path("facts.json"), fact_rows(n_facts, foil="Rome"))
    argv = ["--model", model_folder, "--device", "cpu", "--no-filter", "--facts", facts]
    for words in (["trace", *argv, "--samples", "2", "--mediator", "hidden"], ["locate", *argv]):
        assert run(*words) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert words_of_few[n_facts] in said
        assert (" to +" in said or " to -" in said) == (n_facts > 1), "a single fact has no interval"
    for folder in ("runs/trace", "runs/locations"):
        assert run("figures", folder, "-o", "figures") == 0
        assert words_of_few[n_facts] in " ".join(capsys.readouterr().err.split())
    assert run("compare", "runs/trace", "runs/trace") == 0
    assert f"fewer than 10 facts are too few for a mean; here are {n_facts}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "end"),
    [
        ([FEWEST, FEWEST + 1], ""),
        ([FEWEST, FEWEST - 1], "here are averages over 9"),
        ([2, 4, 30], "here are averages over 2 to 4"),
        ([1, 2], "here are averages over 1 to 2, and of 1 there is no interval"),
        ([1], "of a single fact, not averages; there are no intervals"),
    ],
)
def test_few_facts_are_counted_by_kind_of_token(counts, end):
    said = too_few([BucketMean("last", 0, 0.5, 0.4, 0.6, n) for n in counts])
    assert said.endswith(end)
    assert bool(said) == bool(end)


# ---------------------------------------------------------------------------------------------- what is dropped

LACKING = {
    "selfie": ("not interpreted", ["--tokens", "subject_last", "--new-tokens", "2", "--layers", "0"]),
    "probe lens": ("not probed", ["--tokens", "subject_last"]),
    "probe heads": ("not probed", ["--tokens", "0,subject"]),
    "trace": ("bad row: row 1", ["--samples", "2", "--no-filter"]),
    "locate": ("bad row: row 1", ["--no-filter"]),
}


@pytest.mark.parametrize("command", LACKING)
def test_a_prompt_without_a_subject_is_dropped_with_its_reason(command, model_folder, opened, capsys):
    reason, more = LACKING[command]
    rows = [ROW, {key: value for key, value in ROW.items() if key != "subject"}]
    path = json_file(Path("a.json"), rows)
    argv = [*command.split(), "--model", model_folder, "--device", "cpu", "--output", "runs/a", *more]
    for _ in range(2):  # the second time, from the run
        assert run(*argv, file_option(command), path) == 3
        said = capsys.readouterr()
        assert re.search(rf'^(prompt_2|row_1): {reason}: .*"subject"', said.err, re.MULTILINE)
        assert re.search(r"2 (prompts|facts): 1 \w+, 1 dropped", said.out)
    alone = [*argv[: -len(more)], *more, file_option(command), json_file(Path("b.json"), rows[:1])]
    alone[alone.index("runs/a")] = "runs/b"
    assert run(*alone) == 0
    assert Path("runs/a/table.csv").read_bytes() == Path("runs/b/table.csv").read_bytes()


def test_from_python_it_is_dropped_too(opened):
    rows = [ROW, {"prompt": "I love pizza"}]
    made = interpret.probing.run_lens(*opened, rows, "runs/a", tokens="subject_last", progress=False)
    assert list(made.dropped) == ["prompt_2"]
    assert made.units == ["prompt_2", "prompt_1"]
    with pytest.raises(interpret.InputError, match='prompt prompt_1: token selector .* needs a "subject"'):
        interpret.selfie.run(*opened, rows[1:], "runs/b", tokens="subject")


def test_figures_of_facts_that_were_not_known_say_so(model_folder, capsys):
    facts = json_file(Path("facts.json"), fact_rows(2, attribute="zebra", foil="Rome"))
    for command, folder in (("trace", "runs/trace"), ("locate", "runs/locations")):
        assert run(command, "--model", model_folder, "--device", "cpu", "--facts", facts) == 0
        said = capsys.readouterr()
        assert "2 facts: 0 " in said.out
        assert "known_0: not known: wrong answer, " in said.err
        assert "--no-filter keeps facts that the model does not know" in said.err
        assert run("figures", folder) == 2
        said = capsys.readouterr().err
        assert "has no rows: all units of the run were dropped (2); the first is 'known_0': not known: wrong" in said


# ------------------------------------------------------------------------------------------------- the documents


def table_of_options():
    """The table of docs/guide/prompts.md: (command, option) -> whether the command has the option."""
    text = (TOP / "docs" / "guide" / "prompts.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- options -->\n(.*?)\n<!-- /options -->", text, re.DOTALL)
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")]
    return {
        (command.strip("`"), option.strip("`")): cell == "yes"
        for option, *cells in rows
        for command, cell in zip(header[1:], cells, strict=True)
    }


def test_the_table_of_options_is_that_of_the_commands():
    told = table_of_options()
    assert {command for command, _ in told} == {*COMMANDS, "fact", "probe neurons"}
    app = get_command(make_app())
    for (command, option), has in told.items():
        found = app
        for word in command.split():
            found = found.commands[word]
        assert (option in {name for one in found.params for name in one.opts}) == has, (command, option)
    assert {option for _, option in told} >= {"--prompt", "--subject", "--target", "--foil", "--raw", "--chat-template"}


def test_the_options_of_a_prompt_are_the_keys_of_a_file():
    (prompt,) = load_examples([ROW | {"raw": True}])
    assert (prompt.text, prompt.subject, prompt.target, prompt.foil) == tuple(ROW.values())
    (fact,) = fact_file([ROW]).facts
    assert (fact.prompt, fact.subject, fact.attribute, fact.foil) == tuple(ROW.values())
