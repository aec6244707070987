"""``interpret export --peaks``: the states at the peaks of a trace, as a prompt file for ``interpret selfie``."""

import json
from dataclasses import replace

import pandas as pd

from interpret import storage
from interpret.records import TraceCell
from interpret.storage import run_folder
from interpret.tracing import peak_prompts
from reference.commands import fact_rows, json_file, run
from reference.trace_rows import cells


def stored(folder, rows, **identity):
    names = list(dict.fromkeys(row.name for row in rows))
    with storage.open_run(folder, TraceCell, identity=identity, circumstances={}, units=names) as opened:
        for name in names:
            opened.write(name, [row for row in rows if row.name == name])
    return folder


EFFECTS = [[0, 0, 0, 0.5], [0.1, 0.3, 0.2, 0], [0, 0.4, 0, 0]]


def test_each_states_number_is_that_of_the_layer_it_enters(tmp_path):
    (row,) = peak_prompts(stored(tmp_path / "run", cells(EFFECTS)))
    # Token 0 has the largest effect, but in the last layer; the subject is tokens 1 and 2.
    assert row == {
        "prompt": "Mount Fuji is in",
        "category": "known_1",
        "subject": "Fuji",
        "raw": True,
        "states": [[2, 2]],
    }


def test_peaks_of_several_mediators_are_named_once_and_windows_not_at_all(tmp_path):
    window = [replace(row, site="attn_out") for row in cells([[9.0] * 4] * 3, mediator="attn_window")]
    rows = [
        *cells(EFFECTS),
        *cells(EFFECTS, mediator="attn_severed"),
        *cells([[0.9, 0, 0, 0]] * 3, mediator="mlp_severed"),
    ]
    (row,) = peak_prompts(stored(tmp_path / "run", [*rows, *window]))
    assert row["states"] == [[2, 2], [1, 0], [1, 1]]


def test_a_subject_that_occurs_twice_is_left_out(tmp_path):
    rows = [replace(row, prompt="Fuji, Fuji is in") for row in cells(EFFECTS)]
    (row,) = peak_prompts(stored(tmp_path / "run", rows))
    assert "subject" not in row


def test_what_cannot_be_read_again_is_refused(tmp_path, capsys):
    chat = stored(tmp_path / "chat", cells(EFFECTS), chat_template="model")
    assert run("export", chat, "--peaks", tmp_path / "peaks.json") == 2
    assert "its prompts were read in a chat template" in capsys.readouterr().err
    last = stored(tmp_path / "last", cells([[0, 0.5]] * 3))
    assert run("export", last, "--peaks", tmp_path / "peaks.json") == 2
    assert "no peak at the output of a layer other than the last" in capsys.readouterr().err
    assert not (tmp_path / "peaks.json").exists()


def test_the_traced_states_are_those_that_are_interpreted(model_folder, tmp_path, capsys):
    facts, traced, file = json_file(tmp_path / "facts.json", fact_rows(2)), tmp_path / "trace", tmp_path / "peaks.json"
    common = ("--model", model_folder, "--device", "cpu")
    assert run("trace", "--facts", facts, *common, "--no-filter", "--samples", 2, "--output", traced) == 0
    assert run("export", traced, "--peaks", file) == 0
    prompts = json.loads(file.read_text())["examples"]
    count = sum(len(one["states"]) for one in prompts)
    assert f"{count} states of {len(prompts)} facts; interpret selfie --examples {file}" in " ".join(
        capsys.readouterr().err.split()
    )
    assert run("selfie", "--examples", file, *common, "--new-tokens", 2, "--output", tmp_path / "selfie") == 0
    table = run_folder.read_run(tmp_path / "selfie").to_frame()
    read = table[table["kind"] == "interpretation"]
    peaks = pd.read_csv(traced / "peaks.csv")
    of_trace = {
        (one.name, one.layer_idx + 1, one.token_idx, one.token)
        for one in peaks.itertuples()
        if one.layer_idx < pd.read_csv(traced / "table.csv")["layer_idx"].max()
    }
    columns = ["category", "layer_idx", "token_idx", "current token"]
    found = {tuple(one) for one in read[columns].astype({"layer_idx": int, "token_idx": int}).to_numpy()}
    assert len(read) == count
    assert found == of_trace
