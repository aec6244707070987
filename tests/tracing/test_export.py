"""``interpret export``: a trace run converted to Knowledge-Tracing's files."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from interpret import storage
from interpret.errors import RunError
from interpret.records import Interpretation, LensReading, TraceCell
from interpret.storage import run_folder
from reference.commands import json_file, run
from reference.trace_rows import cells

MEDIATORS = ("hidden", "attn_severed", "mlp_severed")


def effects_of(seed, mediator):
    return np.random.default_rng([seed, len(mediator)]).uniform(-0.1, 0.5, (5 + seed, 4))


def stored(folder, names, mediators=MEDIATORS):
    with storage.open_run(folder, TraceCell, identity={}, circumstances={}, units=names) as opened:
        for seed, name in enumerate(names):
            opened.write(
                name,
                [row for one in mediators for row in cells(effects_of(seed, one).tolist(), name=name, mediator=one)],
            )
    return folder


def fact_file(folder, ids):
    rows = [{"known_id": n, "prompt": f"Fuji {n} is in", "subject": "Fuji", "attribute": "Japan"} for n in ids]
    rows[2] = {"known_id": 2, "prompt": "no subject", "subject": "Fuji", "attribute": "Japan"}
    return json_file(folder / "facts.json", rows)


def test_lists_have_one_entry_per_row_of_the_file(tmp_path, capsys):
    folder, facts = stored(tmp_path / "run", ["known_1", "known_4"]), fact_file(tmp_path, range(6))
    assert run("export", folder, "--facts", facts, "-o", tmp_path / "out", "--name", "demo") == 0
    found = {path.stem: torch.load(path) for path in (tmp_path / "out").iterdir()}
    assert set(found) == {
        f"demo-{name}" for name in ("te", "valid_index", "ie_wo_sever", "ie_w_attn_sever", "ie_w_mlp_sever")
    }
    assert found["demo-valid_index"] == [1, 4]
    # Tensors, because Knowledge-Tracing stacks them.
    assert torch.stack(found["demo-te"]).tolist() == pytest.approx([0, 0.6, 0, 0, 0.6, 0])
    for mediator, name, layers in (
        ("hidden", "ie_wo_sever", 4),
        ("attn_severed", "ie_w_attn_sever", 3),
        ("mlp_severed", "ie_w_mlp_sever", 3),
    ):
        grids = found[f"demo-{name}"]
        assert [tuple(grid.shape) for grid in grids] == [(layers, n) for n in (0, 5, 0, 0, 6, 0)]
        np.testing.assert_array_equal(grids[1], effects_of(0, mediator).T[:layers])
        np.testing.assert_array_equal(grids[4], effects_of(1, mediator).T[:layers])
    assert "5 files, 2 of 6 rows traced" in capsys.readouterr().err


def test_mediators_that_were_not_traced_have_no_file(tmp_path):
    folder, facts = stored(tmp_path / "run", ["known_1"], ["hidden", "attn_window"]), fact_file(tmp_path, range(3))
    assert run("export", folder, "--facts", facts, "-o", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "model-ie_wo_sever.pt",
        "model-te.pt",
        "model-valid_index.pt",
    ]


def test_another_file_of_facts_is_refused(tmp_path, capsys):
    folder, facts = stored(tmp_path / "run", ["known_9"]), fact_file(tmp_path, range(3))
    assert run("export", folder, "--facts", facts, "-o", tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"error: {facts} has no fact 'known_9', which the run traced; give the facts file of the run"
    assert not (tmp_path / "out").exists()


def test_any_run_is_written_for_spreadsheets(tmp_path, capsys):
    folder = tmp_path / "run"
    rows = [replace(row, token="=1+1", answer="@x") for row in cells([[-0.5]], span=(0, 1))]
    with storage.open_run(
        folder, TraceCell, identity={"command": "probe mine"}, circumstances={}, units=["a", "b"]
    ) as opened:
        opened.write("a", rows)
    assert run("export", folder, "--spreadsheet", tmp_path / "safe.csv") == 0
    assert "texts that begin like a formula have an apostrophe" in capsys.readouterr().err
    (row,) = csv.DictReader(io.StringIO((tmp_path / "safe.csv").read_text(encoding="utf-8-sig")))
    assert (row["token"], row["answer"], row["indirect_effect"]) == ("'=1+1", "'@x", "-0.5")
    assert run_folder.read_table(folder, TraceCell) == rows


@pytest.mark.parametrize("options", [[], ["--facts", "f.json", "--spreadsheet", "x.csv"]])
def test_one_of_the_two_formats_is_asked_for(options, tmp_path, capsys):
    assert run("export", stored(tmp_path / "run", ["known_1"]), *options) == 2
    assert "give one of the three: --facts for files of Knowledge-Tracing" in capsys.readouterr().err


def test_a_run_whose_facts_were_all_dropped_says_so(tmp_path, capsys):
    folder = tmp_path / "run"
    with storage.open_run(folder, TraceCell, identity={}, circumstances={}, units=["known_1", "known_2"]) as opened:
        opened.drop("known_1", "not known: wrong, ' Rome'")
        opened.drop("known_2", "not known: wrong, ' Oslo'")
    for command in (
        ["export", folder, "--facts", fact_file(tmp_path, range(6))],
        ["figures", folder, "-o", tmp_path / "figures"],
        ["compare", folder, folder],
    ):
        assert run(*command) == 2
        said = capsys.readouterr().err
        assert (
            "run has no rows: all units of the run were dropped (2); the first is 'known_1': not known: wrong" in said
        )


def test_a_run_of_another_command_is_named(tmp_path):
    with storage.open_run(
        tmp_path / "run", TraceCell, identity={"command": "trace"}, circumstances={}, units=["a"]
    ) as opened:
        opened.write("a", cells([[0.5]], span=(0, 1)))
    with pytest.raises(RunError, match="run of 'interpret trace', not of 'interpret selfie'; use 'interpret figures'"):
        run_folder.read_table(tmp_path / "run", Interpretation)
    with pytest.raises(RunError, match="is a run of 'interpret trace', not of 'interpret probe lens'"):
        run_folder.read_table(tmp_path / "run", LensReading)
