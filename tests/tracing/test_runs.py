"""Fact files traced into run folders: written files, dropped facts, and resumed runs."""

import json
import re

import numpy as np
import pytest
import torch

from interpret import storage
from interpret.errors import InputError
from interpret.facts.files import Fact, load_facts
from interpret.facts.filter import known
from interpret.figures import heads_figure
from interpret.records import TraceCell, TracePeak, UnitCell, columns, csv_header, from_csv, to_csv
from interpret.storage import run_folder
from interpret.tracing.calls import trace
from interpret.tracing.facts import sized_for, trace_cells, trace_fact, trace_facts
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.noise import embedding_sigma
from interpret.tracing.tables import trace_grids, trace_peaks, unit_means
from interpret.tracing.units import UnitTraces, trace_units, unit_cells
from reference.commands import FACT_PROMPTS, fact_rows, run
from reference.trace_runs import arguments, file_of, table_of

PROMPT, SUBJECT = FACT_PROMPTS[0]
NEVER = "zebra"


# -------------------------------------------------------------------------------------------------- written files


def test_the_stored_table_equals_the_rows_of_the_library(model_folder, opened, tmp_path):
    facts = file_of(tmp_path, fact_rows())
    assert run(*arguments(model_folder, facts, tmp_path / "run")) == 0
    settings = TraceSettings(samples=2, window=3)
    rows = list(trace_facts(*opened, load_facts(facts).facts, settings=settings))
    assert table_of(tmp_path / "run") == rows
    assert run_folder.read_table(tmp_path / "run" / "peaks.csv", TracePeak) == trace_peaks(rows)
    assert len({(row.name, row.mediator) for row in rows}) == 4 * 3
    assert {row.method for row in rows} == {"exact"}


@pytest.mark.parametrize("samples", [1, 3])
def test_rows_store_a_trace_exactly(opened, samples):
    fact = Fact("known_0", PROMPT, SUBJECT, "Paris", relation="P17")
    result = trace(*opened, PROMPT, SUBJECT, "Paris", samples=samples, noise=0.5)
    rows = from_csv(TraceCell, csv_header(TraceCell) + to_csv(trace_cells(fact, result)))
    (grid,) = trace_grids(rows)
    np.testing.assert_array_equal(grid.scores, result.scores)
    np.testing.assert_array_equal(grid.effects, result.indirect_effects)
    np.testing.assert_array_equal(grid.spread, result.spread)
    assert (grid.clean, grid.corrupted, grid.total_effect) == (result.high, result.low, result.total_effect)
    assert (grid.tokens, grid.subject_span, grid.answer) == (result.tokens, result.subject_span, result.answer)
    first, last = rows[0], rows[-1]
    assert (first.relation, first.attribute, first.answer_id) == ("P17", "Paris", result.answer_id)
    assert {row.bucket_rome for row in rows if row.in_subject} <= {"first_subject", "middle_subject", "last_subject"}
    assert (last.bucket_rome, last.bucket_kt, last.in_subject) == ("last", "last", False)


@pytest.mark.parametrize("occurrence", [0, 1])
def test_the_occurrence_a_fact_names_is_traced(opened, occurrence):
    fact = Fact("a", "Anna's apples, Anna's", "Anna", "Paris", occurrence=occurrence)
    rows = trace_facts(*opened, [fact], settings=TraceSettings(samples=1), mediators=["hidden"])
    (grid,) = trace_grids(rows)
    start, end = grid.subject_span
    assert "".join(grid.tokens[:start]).strip() == ["", "Anna's apples,"][occurrence]
    assert "".join(grid.tokens[start:end]).strip() == "Anna"


def test_grid_files_have_romes_keys_and_need_no_pickle(model_folder, opened, tmp_path):
    facts = file_of(tmp_path, fact_rows(1))
    more = ["--mediator", "hidden", "--mediator", "mlp_window"]
    assert run(*arguments(model_folder, facts, tmp_path / "run", *more)) == 0
    assert {path.name for path in (tmp_path / "run" / "grids").iterdir()} == {
        "known_0_hidden.npz",
        "known_0_mlp_window.npz",
    }
    (fact,) = load_facts(facts).facts
    settings = sized_for(*opened, [fact], TraceSettings(samples=2, window=3))
    (result,) = trace_fact(*opened, fact, settings, ["mlp_window"])
    with np.load(tmp_path / "run" / "grids" / "known_0_mlp_window.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["scores"], result.scores)
        np.testing.assert_array_equal(stored["sample_scores"], result.sample_scores)
        np.testing.assert_array_equal(stored["sample_lows"], result.sample_lows)
        assert (stored["low_score"], stored["high_score"]) == (result.low, result.high)
        assert stored["input_ids"].tolist() == list(result.token_ids)
        assert stored["input_tokens"].tolist() == list(result.tokens)
        assert tuple(stored["subject_range"]) == result.subject_span
        assert (stored["answer"], stored["window"], stored["kind"]) == (result.answer, 3, "mlp")
        assert not stored["correct_prediction"]
        assert stored["exact"].all()
    with np.load(tmp_path / "run" / "grids" / "known_0_hidden.npz", allow_pickle=False) as stored:
        assert stored["kind"] == ""


def test_the_manifest_holds_every_argument_that_decides_the_numbers(model_folder, tmp_path):
    facts = file_of(tmp_path, fact_rows(2))
    more = ["--noise", "u0.5", "--seed", 7, "--replace", "--answer-tokens", "whole", "--mediator", "hidden"]
    assert run(*arguments(model_folder, facts, tmp_path / "run", *more, "--limit", 1)) == 0
    manifest = storage.read_manifest(tmp_path / "run")
    identity = manifest["identity"]
    assert len(identity.pop("facts_sha256")) == 64
    assert identity.pop("weights").startswith("sha256 ")
    assert identity == {
        "command": "trace",
        "model": str(model_folder),
        "dtype": "float32",
        "load_in_8bit": False,
        "load_in_4bit": False,
        "mediators": ["hidden"],
        "method": "exact",
        "noise": "u0.5",
        "samples": 2,
        "seed": 7,
        "replace": True,
        "window": 3,
        "answer_tokens": "whole",
        "metric": "probability",
        "filter": False,
        "rule": "words",
    }
    assert manifest["circumstances"]["limit"] == 1


def test_knockouts_of_another_metric_are_traced_and_drawn(model_folder, opened, tmp_path, capsys):
    facts = file_of(tmp_path, [row | {"foil": "Rome"} for row in fact_rows(2)])
    names = ["attn_knockout", "attn_knockout:relation,0"]
    given = [word for name in names for word in ("--mediator", name)]
    assert run(*arguments(model_folder, facts, tmp_path / "run", *given, "--metric", "logit_difference")) == 0
    assert "attn_knockout" in capsys.readouterr().out
    settings = TraceSettings(samples=2, window=3, metric="logit_difference")
    rows = list(trace_facts(*opened, load_facts(facts).facts, settings=settings, mediators=names))
    assert table_of(tmp_path / "run") == rows
    assert {(row.metric, row.site, row.effect_std) for row in rows} == {("logit_difference", "attention", None)}
    grids = {file.name for file in (tmp_path / "run" / "grids").iterdir()}
    assert {f"known_0_{name.replace(':', '_')}.npz" for name in names} <= grids
    for options in ([], ["--normalise"]):
        assert run("figures", str(tmp_path / "run"), "--output", str(tmp_path / "drawn"), *options) == 0
        assert (tmp_path / "drawn" / "knockout_curves.png").is_file()


def test_heads_and_neurons_are_traced_into_a_table_of_their_own(model_folder, opened, tmp_path, capsys):
    facts, folder = file_of(tmp_path, fact_rows(2)), tmp_path / "run"
    given = ["--mediator", "heads", "--mediator", "hidden", "--mediator", "neurons"]
    assert run(*arguments(model_folder, facts, folder, *given)) == 0
    said = capsys.readouterr().out
    assert "Heads with the largest average indirect effects on P(answer):" in said
    assert {row.mediator for row in table_of(folder)} == {"hidden"}
    rows = run_folder.read_table(folder / "units.csv", UnitCell)
    settings = sized_for(*opened, load_facts(facts).facts, TraceSettings(samples=2))
    expected = []
    for fact in load_facts(facts).facts:
        for site in ("heads", "neurons"):
            found = trace_units(*opened, fact.prompt, fact.subject, fact.attribute, site=site, settings=settings)
            expected += unit_cells(fact, found)
    assert rows == expected
    best = unit_means(rows)[0]
    of_best = [
        row for row in rows if (row.layer_idx, row.unit, row.bucket_rome) == (best.layer_idx, best.unit, best.bucket)
    ]
    of_best = [row.indirect_effect for row in of_best if row.mediator == best.mediator]
    assert best.mean == pytest.approx(sum(of_best) / 2)
    assert run("figures", str(folder), "--output", str(tmp_path / "drawn")) == 0
    assert (tmp_path / "drawn" / "heads_heatmap.png").is_file()
    figure = heads_figure(rows)
    values = figure.axes[1].get_images()[0].get_array()
    of_head = [row.indirect_effect for row in rows if (row.mediator, row.bucket_rome) == ("heads", "last")]
    assert values[0, 0] == pytest.approx(sum(of_head[:: len(of_head) // 2]) / 2)


def test_heads_alone_leave_no_grids_and_the_run_is_resumed(model_folder, tmp_path, capsys, monkeypatch):
    facts, argv = file_of(tmp_path, fact_rows(2)), []
    for folder in ("whole", "stopped"):
        argv = arguments(model_folder, facts, tmp_path / folder, "--mediator", "heads")
        assert run(*argv, "--limit", 2 if folder == "whole" else 1) == 0
    assert run(*argv, "--limit", 2) == 0
    tables = [(tmp_path / folder / "units.csv").read_bytes() for folder in ("whole", "stopped")]
    assert tables[0] == tables[1]
    assert run("figures", str(tmp_path / "whole"), "--output", str(tmp_path / "drawn")) == 0
    assert [file.name for file in (tmp_path / "drawn").glob("*.png")] == ["heads_heatmap.png"]


def test_a_report_of_heads_and_neurons_alone_shows_their_table(model_folder, tmp_path, capsys):
    facts, folder, page = file_of(tmp_path, fact_rows(2)), tmp_path / "run", tmp_path / "page.html"
    assert run(*arguments(model_folder, facts, folder, "--mediator", "heads", "--mediator", "neurons")) == 0
    assert run("report", str(folder), "--output", str(page)) == 0
    assert "Causal trace of single heads and neurons, 2 facts" in page.read_text()
    shown = UnitTraces(run_folder.read_table(folder / "units.csv", UnitCell))
    panels = list(shown.view().panels())
    assert [panel.name for panel in panels] == ["known_0", "known_1"]
    for panel in panels:
        drawn = 0
        of_fact = [row for row in shown if row.name == panel.name]
        for row in of_fact:
            if row.mediator == "heads":
                (grid,) = [one for one in panel.grids if one.title.endswith(f"(token {row.token_idx})")]
                assert grid.bands[0].values[row.unit, row.layer_idx] == row.indirect_effect
                drawn += 1
        assert drawn
        values = [row.indirect_effect for row in of_fact if row.mediator == "neurons"]
        (grid,) = [one for one in panel.grids if one.title == "largest effects"]
        assert np.nanmax(np.abs(grid.bands[0].values)) == max(map(abs, values))


def test_a_unit_that_was_not_run_for_a_fact_counts_as_0():
    def cell(name, unit, effect):
        words = {"prompt": "p", "answer": "a", "metric": "probability", "mediator": "neurons", "token": "t"}
        numbers = {"layer_idx": 1, "token_idx": 2, "clean": 1.0, "corrupted": 0.0, "total_effect": 1.0}
        return UnitCell(name=name, unit=unit, indirect_effect=effect, bucket_rome="last", **words, **numbers)

    rows = [cell("f_0", 5, 0.4), cell("f_1", 5, -0.2), cell("f_0", 6, -0.6), cell("f_1", 7, float("nan"))]
    first, second = unit_means(rows)
    assert (first.unit, first.mean, first.n, first.effects) == (6, -0.3, 1, (-0.6, 0.0))
    assert (second.unit, second.mean, second.n) == (5, pytest.approx(0.1), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "logits"], "unknown metric 'logits'; did you mean 'logit'?"),
        (["--mediator", "attn_knockout:subjects"], "mediator 'attn_knockout:subjects': unknown token selector"),
        (["--mediator", "attn_knockout", "--method", "screened"], "mediator 'attn_knockout' has no first-order"),
        (["--mediator", "heads", "--method", "screened"], "mediator 'heads' is not traced by the method 'screened'"),
        (["--mediator", "neurons", "--metric", "rank"], "a rank has no derivative, so it has no first-order estimate"),
        (["--metric", "rank", "--method", "screened"], "a rank has no derivative, so it has no first-order estimate"),
    ],
)
def test_metrics_and_knockouts_that_do_not_exist_are_refused(model_folder, tmp_path, capsys, options, message):
    facts = file_of(tmp_path, fact_rows(1))
    assert run(*arguments(model_folder, facts, tmp_path / "run", *options)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_foil_that_is_not_read_is_refused(model_folder, tmp_path, capsys):
    given = ["--prompt", PROMPT, "--subject", SUBJECT, "--target", "Paris", "--foil", "Rome"]
    assert run("trace", "--model", str(model_folder), *given, "--output", str(tmp_path / "run")) == 2
    assert "--foil is only read by --metric logit_difference" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["approximate", "relp"])
def test_estimated_cells_are_marked(model_folder, tmp_path, method):
    facts = file_of(tmp_path, fact_rows(1))
    assert run(*arguments(model_folder, facts, tmp_path / "run", "--method", method)) == 0
    assert {row.method for row in table_of(tmp_path / "run")} == {method}


def test_screened_cells_are_exact_and_the_others_are_marked(model_folder, tmp_path, capsys):
    facts = file_of(tmp_path, fact_rows(1))
    methods = ("exact", "approximate", "screened")
    for method in methods:
        assert run(*arguments(model_folder, facts, tmp_path / method, "--method", method)) == 0
    exact, guessed, screened = (table_of(tmp_path / method) for method in methods)
    for row, guess, found in zip(exact, guessed, screened, strict=True):
        expected = {"exact": row, "approximate": guess}[found.method]
        assert found.indirect_effect == pytest.approx(expected.indirect_effect, abs=1e-6)
    first = min(row.token_idx for row in screened if row.in_subject)  # before it no state has an effect
    run_or_not = [row.method == "exact" for row in screened if row.token_idx >= first]
    share = sum(run_or_not) / len(run_or_not)
    assert 0.1 <= share < 0.2
    said = capsys.readouterr().out
    assert "Warning: all cells are estimates; their sizes are unreliable" in said
    assert f"Warning: {1 - share:.0%} of the cells that can have an effect are estimates" in said


# ------------------------------------------------------------------------------------------------ size of the noise


def test_the_subjects_of_the_whole_file_set_the_size_of_the_noise(model_folder, opened, tmp_path):
    facts = file_of(tmp_path, fact_rows())
    of_all = load_facts(facts).facts
    sigma = embedding_sigma(*opened, [fact.subject for fact in of_all])
    assert sized_for(*opened, of_all, TraceSettings("s2")).noise == 2 * sigma
    assert run(*arguments(model_folder, facts, tmp_path / "run", "--limit", 1, "--mediator", "hidden")) == 0
    expected = trace(*opened, PROMPT, SUBJECT, "Paris", samples=2, noise=3 * sigma)
    (grid,) = trace_grids(table_of(tmp_path / "run"))
    np.testing.assert_array_equal(grid.scores, expected.scores)
    of_one = trace(*opened, PROMPT, SUBJECT, "Paris", samples=2)
    assert not np.allclose(grid.scores, of_one.scores)


@pytest.mark.parametrize(
    "settings", [TraceSettings("u0.5"), TraceSettings(0.5), TraceSettings("m"), TraceSettings(reference_texts=("a",))]
)
def test_noise_with_a_fixed_size_is_unchanged(opened, settings):
    assert sized_for(*opened, [Fact("a", PROMPT, SUBJECT, "Paris")], settings) is settings


# -------------------------------------------------------------------------------------------------- dropped facts


def test_facts_the_model_does_not_know_are_never_traced(model_folder, opened, tmp_path, capsys):
    facts = file_of(tmp_path, fact_rows(attribute=NEVER))
    said = [answer.answer_text.strip() for answer in known(*opened, load_facts(facts).facts, rule="first_token")]
    rows = json.loads(facts.read_text())
    knows = [n for n, text in enumerate(said) if text and text.isascii() and text.isprintable()][:2]
    assert knows, "no answer of the model can be written into a file"
    for n in knows:
        rows[n]["attribute"] = said[n]
    argv = arguments(model_folder, file_of(tmp_path, rows), tmp_path / "run", "--filter", "--rule", "first_token")
    assert run(*argv) == 0
    manifest = storage.read_manifest(tmp_path / "run")
    assert {row.name for row in table_of(tmp_path / "run")} == {f"known_{n}" for n in knows}
    dropped = [n for n in range(4) if n not in knows]
    assert set(manifest["dropped"]) == {f"known_{n}" for n in dropped}
    assert all(reason.startswith("not known: ") for reason in manifest["dropped"].values())
    counts = manifest["counts"]
    assert counts["in"] == counts["kept"] + counts["dropped"] == 4
    shown = capsys.readouterr().out
    assert f"4 facts: {len(knows)} traced, {len(dropped)} dropped ({len(dropped)} not known)" in shown
    for n in dropped:
        assert f"known_{n}: {manifest['dropped'][f'known_{n}']}\n" in shown, "each is named with its reason"
    assert "--no-filter keeps facts that the model does not know" in shown


def test_a_run_in_which_no_fact_is_known_finishes(model_folder, tmp_path, capsys):
    facts = file_of(tmp_path, fact_rows(2, attribute=NEVER))
    assert run(*arguments(model_folder, facts, tmp_path / "run", "--filter")) == 0
    assert "2 facts: 0 traced, 2 dropped (2 not known)" in capsys.readouterr().out
    assert run_folder.read_table(tmp_path / "run" / "peaks.csv", TracePeak) == []


def test_bad_rows_and_facts_that_fail_are_reported_and_the_rest_is_traced(model_folder, tmp_path, capsys):
    rows = fact_rows(2)
    rows.insert(0, {"subject": "Anna", "attribute": "x", "prompt": "nobody is here"})
    rows.insert(2, {"known_id": 9, "subject": "Eiffel", "attribute": "Paris", "prompt": "The Eiffel Tower is in "})
    argv = arguments(model_folder, file_of(tmp_path, rows), tmp_path / "run")
    for _ in range(2):  # the second time, the reasons are read from the run folder
        assert run(*argv) == 3
        captured = capsys.readouterr()
        assert "4 facts: 2 traced, 2 dropped (1 bad row, 1 not traced)" in captured.out
        assert "row_0: bad row: row 0: \"subject\" 'Anna' is not a part of the prompt 'nobody is here'" in captured.err
        assert "known_9: not traced: answer 'Paris' merges with the last token of the prompt" in captured.err
    assert {row.name for row in table_of(tmp_path / "run")} == {"known_0", "known_1"}
    assert set(storage.read_manifest(tmp_path / "run")["dropped"]) == {"row_0", "known_9"}


def test_probabilities_that_are_not_finite_are_refused(opened):
    model, tokenizer = opened
    head = model.get_output_embeddings().weight
    kept = head.data.clone()
    head.data[3] = torch.nan
    try:
        with pytest.raises(InputError, match=r"^fact 'a': probabilities of the answer are not finite; open the model"):
            list(
                trace_facts(model, tokenizer, [Fact("a", PROMPT, SUBJECT, "Paris")], settings=TraceSettings(samples=1))
            )
    finally:
        head.data.copy_(kept)


def test_the_library_names_the_fact_it_cannot_trace(opened):
    fact = Fact("known_9", "The Eiffel Tower is in", "Louvre", "Paris")
    with pytest.raises(InputError, match="fact 'known_9': subject 'Louvre' is not a part of the prompt"):
        list(trace_facts(*opened, [fact]))


# ------------------------------------------------------------------------------------------------ the command line


def test_a_configuration_is_used_and_options_win(model_folder, tmp_path):
    facts = file_of(tmp_path, fact_rows(1))
    (tmp_path / "trace.yaml").write_text(
        f"model: {{pth: '{model_folder}'}}\ndata: '{facts}'\noutput: '{tmp_path / 'run'}'\n"
        "mediators: [hidden]\nnoise: 0.5\nsamples: 2\nseed: 3\nwindow: 2\nbuckets: kt\ndevice: cpu\n"
    )
    assert run("trace", "--config", tmp_path / "trace.yaml", "--seed", 4, "--no-filter") == 0
    manifest = storage.read_manifest(tmp_path / "run")
    chosen = {key: manifest["identity"][key] for key in ("mediators", "noise", "samples", "seed", "window")}
    assert chosen == {"mediators": ["hidden"], "noise": "0.5", "samples": 2, "seed": 4, "window": 2}
    assert manifest["circumstances"]["buckets"] == "kt"


def test_the_summary_shows_averages_peaks_and_counts(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, fact_rows(3)), tmp_path / "run", "--mediator", "hidden")
    assert run(*argv) == 0
    shown = capsys.readouterr().out
    rows = table_of(tmp_path / "run")
    assert f"{len(rows)} rows in {tmp_path / 'run' / 'table.csv'}" in shown.replace("\n", "")
    assert "3 facts: 3 traced, 0 dropped\n" in shown
    for words in ("AIE", "last_subject", "95% interval"):
        assert words in shown
    of_subject = [peak for peak in trace_peaks(rows) if peak.among == "subject"]
    mean = np.mean([peak.indirect_effect for peak in of_subject])
    median = np.median([peak.layer_idx for peak in of_subject])
    found = re.search(rf"hidden +│ subject +│ \S+ +│ \d +│ (\S+) +│ {median:g} \(\d to \d\)", shown)
    assert found
    assert found[1] == (f"{mean:+.3f}" if abs(mean) >= 0.0005 else f"{mean:+.0e}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--mediator", "hiden"], "error: unknown mediator 'hiden'; did you mean 'hidden'?"),
        (["--noise", "x3"], "error: noise 'x3' is not understood; give 's3'"),
        (
            ["--answer-tokens", "frist"],
            "error: unknown --answer-tokens 'frist'; did you mean 'first'? Allowed: first, whole",
        ),
        (["--rule", "word"], "error: unknown rule 'word'; did you mean 'words'?"),
        (["--method", "exat"], "error: unknown method 'exat'; did you mean 'exact'?"),
        (["--facts", "none.json"], "error: none.json does not exist; give a JSON file like examples/facts.json"),
        (["--config", "none.yaml"], "error: none.yaml does not exist"),
        (["--model", "./none"], "error: there is no folder './none'"),
        (["--dtype", "float23"], "error: unknown dtype 'float23'; did you mean 'float32'?"),
        (["--samples", "0"], "Invalid value for '--samples'"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(model_folder, tmp_path, capsys, change, message):
    assert run(*arguments(model_folder, file_of(tmp_path, fact_rows(1)), tmp_path / "run", *change)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists(), "the corrected command would be taken for another run"


def test_a_missing_fact_file_is_an_error(model_folder, capsys):
    assert run("trace", "--model", model_folder) == 2
    assert "error: give either --prompt with a text or --facts with a file of facts" in capsys.readouterr().err


def test_columns_of_the_table():
    assert columns(TraceCell)[:6] == ["name", "relation", "prompt", "subject", "attribute", "answer"]
