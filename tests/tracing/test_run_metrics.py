"""Runs of traces with several metrics: each metric has the values that it has in a run of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import interpret
from interpret import storage
from interpret.errors import InputError
from interpret.facts.files import Fact
from interpret.figures import traces
from interpret.records import TraceAverage, TraceCell, TracePeak, UnitCell, from_csv
from interpret.storage import join_runs, run_folder
from interpret.sweep.metrics import KINDS
from interpret.tracing import runs
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.show import Traces, prompt_figure
from interpret.tracing.tables import normalised, trace_averages, trace_grids, trace_peaks, unit_means
from interpret.tracing.units import UnitTraces
from reference.commands import FACT_PROMPTS, fact_rows, run
from reference.trace_rows import cells
from reference.trace_runs import arguments, file_of, results_of, table_of

SETTINGS = TraceSettings(samples=2, window=3)
FACTS = [
    Fact(f"known_{n}", prompt, subject, "Paris", foil="Rome") for n, (prompt, subject) in enumerate(FACT_PROMPTS[:2])
]
TWO = ("logit_difference", "probability")


def traced_into(folder, opened, **options):
    """Trace two facts into a run folder, and return the folder."""
    given = {"settings": SETTINGS, "mediators": ["hidden", "attn_knockout"]} | options
    interpret.tracing.run(*opened, FACTS, folder, only_known=False, progress=False, **given)
    return folder


def grid_files(folder):
    """The arrays of each grid file."""
    found = {}
    for file in (folder / "grids").iterdir():
        with np.load(file) as stored:
            found[file.name] = {key: stored[key] for key in stored.files}
    return found


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("metrics", "options"),
    [
        (KINDS, {}),
        (TWO, {"method": "approximate", "mediators": ["hidden", "mlp_severed"]}),
        (TWO, {"method": "screened", "mediators": ["hidden", "mlp_severed"]}),
    ],
    ids=["exact", "approximate", "screened"],
)
def test_each_metric_has_the_rows_grids_and_peaks_of_a_run_of_its_own(opened, tmp_path, metrics, options):
    together = traced_into(tmp_path / "all", opened, metrics=metrics, **options)
    rows, grids = table_of(together), grid_files(together)
    peaks = run_folder.read_table(together / "peaks.csv", TracePeak)
    assert list(dict.fromkeys(row.metric for row in rows)) == list(metrics)
    for metric in metrics:
        alone = traced_into(tmp_path / metric, opened, settings=replace(SETTINGS, metric=metric), **options)
        assert [row for row in rows if row.metric == metric] == table_of(alone)
        assert [peak for peak in peaks if peak.metric == metric] == run_folder.read_table(
            alone / "peaks.csv", TracePeak
        )
        for name, arrays in grid_files(alone).items():
            of_metric = grids.pop(name.replace(".npz", f"-{metric}.npz"))
            for key, array in arrays.items():
                np.testing.assert_array_equal(of_metric[key], array)
    assert not grids


def test_logarithms_of_probabilities_are_the_log_probabilities_of_the_same_run(opened, tmp_path):
    metrics, settings = ("log_probability", "probability"), TraceSettings(samples=1)
    rows = table_of(traced_into(tmp_path / "run", opened, metrics=metrics, settings=settings))
    logs, plain = ([row for row in rows if row.metric == metric] for metric in metrics)
    assert len(logs) == len(plain) > 50
    for log, row in zip(logs, plain, strict=True):
        assert (log.name, log.mediator, log.token_idx, log.layer_idx) == (
            row.name,
            row.mediator,
            row.token_idx,
            row.layer_idx,
        )
        expected = np.log([row.clean, row.corrupted, row.restored])
        np.testing.assert_allclose([log.clean, log.corrupted, log.restored], expected, rtol=1e-6)


def test_the_rows_of_facts_are_those_of_the_run(opened, tmp_path):
    folder = traced_into(tmp_path / "run", opened, metrics=TWO)
    given = {"settings": SETTINGS, "mediators": ["hidden", "attn_knockout"], "metrics": TWO}
    assert table_of(folder) == list(interpret.tracing.trace_facts(*opened, FACTS, progress=False, **given))


def test_heads_and_neurons_have_the_rows_of_a_run_of_their_own(opened, tmp_path):
    options = {"mediators": ["heads", "neurons"]}
    rows = run_folder.read_table(traced_into(tmp_path / "all", opened, metrics=TWO, **options) / "units.csv", UnitCell)
    for metric in TWO:
        alone = traced_into(tmp_path / metric, opened, settings=replace(SETTINGS, metric=metric), **options)
        expected = run_folder.read_table(alone / "units.csv", UnitCell)
        of_metric = [row for row in rows if row.metric == metric]
        assert of_metric == expected
        assert [one for one in unit_means(rows) if one.metric == metric] == unit_means(expected)
    shown = UnitTraces(rows).view()
    panels = list(shown.panels())
    assert [panel.name for panel in panels] == [
        f"known_{n}, {words}" for n in range(2) for words in ("logit difference", "P")
    ]
    assert shown.n_panels == len(panels)
    assert shown.unit == (
        "indirect effect: the metric with one head or neuron restored − the metric in the corrupted run"
    )
    with pytest.raises(InputError, match="^a figure shows one metric, but these traces have several: logit_difference"):
        traces.heads_figure(rows)


def test_the_same_metric_as_an_argument_or_a_setting_is_the_same_run(opened, tmp_path, capsys):
    folder = traced_into(tmp_path / "run", opened, settings=replace(SETTINGS, metric="logit"))
    before = results_of(folder)
    traced_into(folder, opened, metrics=["logit"])
    assert results_of(folder) == before
    assert storage.read_manifest(folder)["identity"]["metric"] == "logit"
    assert {file.name for file in (folder / "grids").iterdir()} >= {"known_0_hidden.npz"}


# ------------------------------------------------------------------------------------------------ the command


def test_a_run_that_is_stopped_between_mediators_ends_with_the_same_files(model_folder, tmp_path, capsys, monkeypatch):
    facts, real, traced = file_of(tmp_path, fact_rows(2)), runs.trace_fact, []
    more = [word for name in ("hidden", "mlp_window") for word in ("--mediator", name)]
    more += ["--metric", "rank", "--metric", "probability"]
    assert run(*arguments(model_folder, facts, tmp_path / "whole", *more)) == 0
    shown = capsys.readouterr().out
    for measured in ("rank(answer)", "P(answer)"):
        assert f"Average indirect effect (AIE) on {measured} for each kind of token" in shown
        assert f"Peaks of the average on {measured}" in shown

    def interrupted(*given):
        if len(traced) == 1:
            traced.append("interrupted")
            raise KeyboardInterrupt
        traced.append(given[2].name)
        return real(*given)

    monkeypatch.setattr(runs, "trace_fact", interrupted)
    argv = arguments(model_folder, facts, tmp_path / "stopped", *more)
    assert run(*argv) == 130
    assert "stopped after 0 of 2 facts and 1 mediator of the next; the same" in capsys.readouterr().err
    assert run(*argv) == 0
    assert traced == ["known_0", "interrupted", "known_0", "known_1", "known_1"]
    assert results_of(tmp_path / "stopped") == results_of(tmp_path / "whole")
    assert len(results_of(tmp_path / "whole")) == 2 + 2 * 2 * 2
    assert storage.read_manifest(tmp_path / "whole")["identity"]["metric"] == ["rank", "probability"]
    assert run(*argv[:-2]) == 2
    assert "metric: " in capsys.readouterr().err


def test_metrics_of_a_configuration_are_traced_and_drawn_each_by_itself(model_folder, tmp_path):
    facts, folder, drawn = file_of(tmp_path, fact_rows(2)), tmp_path / "run", tmp_path / "drawn"
    (tmp_path / "trace.yaml").write_text("metric: [log_probability, logit]\nmediators: [hidden, heads]\n")
    assert run(*arguments(model_folder, facts, folder, "--config", tmp_path / "trace.yaml")) == 0
    assert run("figures", folder, "--output", drawn, "--fact", "known_1") == 0
    names = ["average_heatmap", "average_lines", "heads_heatmap", "fact_known_1"]
    assert sorted(file.stem for file in drawn.glob("*.png")) == sorted(
        f"{name}-{metric}" for name in names for metric in ("log_probability", "logit")
    )
    averages = from_csv(TraceAverage, (drawn / "averages.csv").read_bytes())
    rows = table_of(folder)
    for metric in ("log_probability", "logit"):
        alone = trace_averages(trace_grids(row for row in rows if row.metric == metric))
        stored = [one for one in averages if one.metric == metric]
        assert [repr(one) for one in stored] == [repr(one) for one in alone]  # the intervals of one fact are NaN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "rank", "--metric", "rank"], "the metric rank is given twice; give each metric once"),
        (["--metric", "rank", "--metric", "logits"], "unknown metric 'logits'; did you mean 'logit'?"),
        (
            ["--metric", "logit", "--metric", "rank", "--method", "relp"],
            "a rank has no derivative, so it has no first-order estimate",
        ),
        (
            ["--metric", "logit", "--metric", "rank", "--mediator", "neurons"],
            "a rank has no derivative, so it has no first-order estimate",
        ),
    ],
)
def test_metrics_that_cannot_be_traced_are_refused(model_folder, tmp_path, capsys, options, message):
    assert run(*arguments(model_folder, file_of(tmp_path, fact_rows(1)), tmp_path / "run", *options)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_foil_is_read_by_the_difference_among_other_metrics(model_folder, tmp_path, capsys):
    prompt, subject = FACT_PROMPTS[0]
    given = ["--prompt", prompt, "--subject", subject, "--target", "Paris", "--foil", "Rome", "--no-filter"]
    common = ["trace", "--model", model_folder, "--device", "cpu", *given, "--samples", 1, "--mediator", "hidden"]
    common += ["--output", tmp_path / "run", "--metric", "logit"]
    assert run(*common, "--metric", "rank") == 2
    assert "--foil is only read by --metric logit_difference" in capsys.readouterr().err
    assert run(*common, "--metric", "logit_difference") == 0
    assert {row.metric for row in table_of(tmp_path / "run")} == {"logit", "logit_difference"}


# ------------------------------------------------------------------------------------------------ handmade rows


def effects_of(seed):
    return np.random.default_rng(seed).uniform(-0.1, 0.5, (5, 4)).tolist()


def handmade():
    """Rows of two facts by two metrics, mediator by mediator."""
    return [
        row
        for n in range(2)
        for place, mediator in enumerate(("hidden", "mlp_severed"))
        for seed, metric in enumerate(("probability", "logit"))
        for row in cells(effects_of((n, place, seed)), name=f"known_{n}", mediator=mediator, metric=metric)
    ]


def stored(folder, rows):
    names = list(dict.fromkeys(row.name for row in rows))
    with storage.open_run(folder, TraceCell, identity={}, circumstances={}, units=names) as opened:
        for name in names:
            opened.write(name, [row for row in rows if row.name == name])
    return folder


def test_traces_show_a_panel_for_each_fact_and_metric():
    rows = handmade()
    shown = Traces(rows)
    view = shown.view()
    panels = list(view.panels())
    assert [panel.name for panel in panels] == [f"known_{n}, {words}" for n in range(2) for words in ("P", "logit")]
    assert (view.title, view.n_panels) == ("Causal traces of 2 facts", 4)
    assert view.unit == "indirect effect: the metric with one state restored − the metric in the corrupted run"
    for panel, (n, seed) in zip(panels, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        values = [grid.bands[0].values for grid in panel.grids]
        np.testing.assert_array_equal(values, [effects_of((n, place, seed)) for place in range(2)])
    figure = shown.figure(3)
    assert "known_1: logit(" in figure.get_suptitle()
    assert figure.axes[-1].get_ylabel() == "logit(Japan)"
    with pytest.raises(InputError, match="input 4 does not exist"):
        shown.figure(4)


def test_figures_name_their_metric_and_are_of_one_metric_only():
    grids = trace_grids(handmade())
    for metric, words in (("probability", "probability"), ("logit", "logit(answer)")):
        of_one = [grid for grid in grids if grid.metric == metric]
        for figure in (traces.average_figure(of_one), traces.severed_figure(of_one)):
            assert f"AIE (change of {words})" in [panel.get_ylabel() for panel in figure.axes]
        shares = traces.average_figure(normalised(of_one))
        assert f"AIE (share of the total effect\non {words})" in [panel.get_ylabel() for panel in shares.axes]
    for draw in (traces.average_figure, traces.line_figure, traces.severed_figure, prompt_figure):
        with pytest.raises(
            InputError, match="^a figure shows one metric, but these traces have several: probability, "
        ):
            draw(grids)


def test_runs_are_compared_metric_by_metric(tmp_path, capsys):
    rows = handmade()
    one = stored(tmp_path / "one", rows)
    other = [replace(row, indirect_effect=-row.indirect_effect) if row.metric == "logit" else row for row in rows]
    assert run("compare", one, stored(tmp_path / "two", other)) == 0
    said = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    found = {(words[1].strip(), words[2].strip()): words[4].strip() for words in said}
    assert found == {
        (mediator, metric): {"probability": "+1.00", "logit": "-1.00"}[metric]
        for mediator in ("hidden", "mlp_severed")
        for metric in ("probability", "logit")
    }
    logits = stored(tmp_path / "logits", [row for row in rows if row.metric == "logit"])
    plain = stored(tmp_path / "plain", [row for row in rows if row.metric == "probability"])
    assert run("compare", logits, plain) == 2
    assert "have no fact, mediator and metric in common" in " ".join(capsys.readouterr().err.split())


def test_peaks_of_all_metrics_are_exported(tmp_path):
    rows = handmade()
    found = interpret.tracing.peak_prompts(stored(tmp_path / "run", rows))
    for prompt in found:
        expected = {
            (peak.layer_idx + 1, peak.token_idx)
            for metric in ("probability", "logit")
            for peak in trace_peaks([row for row in rows if row.metric == metric])
            if peak.name == prompt["category"] and peak.layer_idx < 3
        }
        assert set(map(tuple, prompt["states"])) == expected


def test_each_metric_has_knowledge_tracings_files(tmp_path):
    rows = handmade()
    document = [
        {"known_id": n, "prompt": "Mount Fuji is in", "subject": "Fuji", "attribute": "Japan"} for n in range(2)
    ]
    facts = file_of(tmp_path, document)
    written = {}
    for name, chosen in (("both", rows), ("alone", [row for row in rows if row.metric == "logit"])):
        folder = stored(tmp_path / name, chosen)
        assert run("export", folder, "--facts", facts, "--output", tmp_path / f"{name} out", "--name", "m") == 0
        written[name] = {file.stem: torch.load(file) for file in (tmp_path / f"{name} out").iterdir()}
    assert len(written["both"]) == 2 * len(written["alone"]) == 8
    for name, values in written["alone"].items():
        assert all(map(torch.equal, *(map(torch.as_tensor, of) for of in (written["both"][f"{name}-logit"], values))))


def test_a_joined_state_has_a_row_for_each_metric(tmp_path):
    rows = [row for row in handmade() if row.mediator == "hidden"]
    runs_of = {"all": stored(tmp_path / "all", rows)}
    runs_of["one"] = stored(tmp_path / "one", [row for row in rows if (row.metric, row.name) == ("logit", "known_0")])
    table = join_runs(runs_of)
    table = table[table["all.name"] == "known_0"]
    assert len(table) == 2 * 5 * 4
    of_logit = table[table["all.metric"] == "logit"]
    assert of_logit["all.indirect_effect"].tolist() == of_logit["one.indirect_effect"].tolist()
