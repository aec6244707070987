"""Figures of stored traces: they show the values of the table, and need no model."""

import re
import subprocess
import sys
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from interpret import storage
from interpret.drawing.panels import save
from interpret.errors import InputError
from interpret.figures import traces
from interpret.records import TraceAverage, TraceCell, from_csv
from interpret.tracing.mediators import MEDIATORS as MEDIATOR_ROWS
from interpret.tracing.show import prompt_figure
from interpret.tracing.tables import trace_averages, trace_grids
from reference.commands import run
from reference.trace_rows import cells

MEDIATORS = ("hidden", "attn_severed", "mlp_severed")
TOKENS, LAYERS = 6, 8


def effects_of(seed, low=-0.02):
    effects = np.random.default_rng(seed).uniform(low, 0.05, (TOKENS, LAYERS))
    effects[2, seed % LAYERS] = 0.5
    return effects.tolist()


def rows_of(facts=3, mediators=MEDIATORS, **options):
    return [
        row
        for n in range(facts)
        for mediator in mediators
        for row in cells(effects_of(n, **options), name=f"known_{n}", mediator=mediator)
    ]


@pytest.fixture(scope="module")
def traced():
    return trace_grids(rows_of())


@pytest.fixture
def finished_run(tmp_path):
    """A finished run of three facts, as ``interpret trace`` leaves it."""
    units = [f"known_{n}" for n in range(3)]
    circumstances = {"buckets": "rome"}
    folder = tmp_path / "run"
    with storage.open_run(
        folder, TraceCell, identity={"window": 10}, circumstances=circumstances, units=units
    ) as opened:
        for unit in units:
            opened.write(unit, [row for row in rows_of() if row.name == unit])
    return folder


def images(figure):
    """The values of a figure's heatmaps, panel by panel."""
    return [np.asarray(image.get_array()) for panel in figure.axes for image in panel.get_images()]


def panels(figure):
    return [panel for panel in figure.axes if panel.get_images()]


# ------------------------------------------------------------------------------------------------ one fact


def test_a_fact_is_drawn_tokens_by_layers_on_one_scale(traced):
    of_fact = [grid for grid in traced if grid.name == "known_1"]
    figure = prompt_figure(of_fact)
    for image, grid in zip(images(figure), of_fact, strict=True):
        np.testing.assert_array_equal(image, grid.scores)
    assert len({image.norm for panel in figure.axes for image in panel.get_images()}) == 1
    labels = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    assert labels == [" t0", " t1*", " t2*", " t3", " t4", " t5"]
    assert [panel.get_title() for panel in panels(figure)] == [
        "hidden state",
        "hidden state,\nattention severed",
        "hidden state,\nMLP severed",
    ]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "P(Japan)"


def test_the_corrupted_probability_is_pale_and_less_has_a_colour_of_its_own(traced):
    figure = prompt_figure(traced[:1])
    (image,) = panels(figure)[0].get_images()
    np.testing.assert_allclose(image.norm(traced[0].corrupted), 0.5)
    pale, less, more = (np.array(image.to_rgba(0.1 + step)) for step in (0.0, -0.3, 0.3))
    assert pale[:3].min() > 0.9
    assert less[0] > less[1] > less[2], "orange"
    assert more[2] > more[1] > more[0], "blue"
    bar, ends = figure.axes[-1], (traced[0].scores.min(), traced[0].scores.max())
    assert bar.get_ylim() == ends
    assert (bar.get_yticks()[0], bar.get_yticks()[-1]) == ends, "both ends are labelled"


@pytest.mark.parametrize("token", ["\n", "$x$ $", "東京", "\ue000", "", "a_{b}^c", "\t", "\ud83d"])
def test_any_token_can_be_drawn(token, tmp_path):
    rows = [vars(row) | {"token": token, "answer": token} for row in cells(effects_of(0))]
    save(prompt_figure(trace_grids(TraceCell(**row) for row in rows)), tmp_path / "odd")
    assert (tmp_path / "odd.png").stat().st_size > 1000


def test_labels_of_a_long_prompt_do_not_overlap():
    rng = np.random.default_rng(0)
    rows = cells(rng.uniform(0, 0.5, (80, LAYERS)).tolist())
    rows = [TraceCell(**(vars(row) | {"token": "abcdefghijklmnopqrstuvwxyz"})) for row in rows]
    figure = prompt_figure(trace_grids(rows))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in panels(figure)[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in zip(boxes, boxes[1:], strict=False))
    assert min(box.x0 for box in boxes) >= 0
    assert panels(figure)[0].get_window_extent().width > 100


@pytest.mark.parametrize("count", [1, 2, 3])
def test_titles_and_legends_are_not_cut_off(count):
    grids = trace_grids(rows_of(1, MEDIATORS[:count]))
    figures = [prompt_figure(grids), traces.average_figure(grids), traces.line_figure(grids)]
    for figure in figures + ([traces.severed_figure(grids)] if count > 1 else []):
        figure.draw_without_rendering()
        for part in [figure._suptitle, *figure.legends, *(panel.title for panel in figure.axes)]:
            box = part.get_window_extent()
            assert 0 <= box.x0, part
            assert box.x1 <= figure.bbox.width, part
            assert box.y1 <= figure.bbox.height, part


def test_two_facts_in_one_figure_are_refused(traced):
    with pytest.raises(InputError, match="needs grids of one fact; got 3: known_0, known_1, known_2"):
        prompt_figure(traced)


# ------------------------------------------------------------------------------------------------ averages


def test_averages_are_drawn_whole_on_one_scale_of_the_data(traced):
    figure = traces.average_figure(traced, scheme="kt")
    for image, mediator in zip(images(figure), MEDIATORS, strict=True):
        of_one = [grid.effects for grid in traced if grid.mediator == mediator]
        last_subject = np.mean([effects[2] for effects in of_one], axis=0)
        np.testing.assert_allclose(image[1], last_subject)
    norm = panels(figure)[0].get_images()[0].norm
    drawn = np.concatenate([image.ravel() for image in images(figure)])
    assert norm.vmax == np.nanmax(np.abs(drawn))
    assert norm.vmin == -norm.vmax
    assert figure.axes[-1].get_ylim() == (min(0, np.nanmin(drawn)), np.nanmax(drawn))
    assert figure.axes[-1].get_ylabel() == "AIE (change of probability)"


def test_negative_averages_are_visible():
    figure = traces.average_figure(trace_grids(cells([[-0.4, 0.1]] * TOKENS)))
    assert figure.axes[-1].get_ylim() == (-0.4, 0.1)
    norm = panels(figure)[0].get_images()[0].norm
    assert (norm.vmin, norm.vmax) == (-0.4, 0.4)


def test_a_bucket_without_tokens_has_no_row(traced):
    figure = traces.average_figure(traced)
    labels = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    assert len(labels) == len(images(figure)[0]) == 5
    assert labels[1] == "last subject token (n=3)"
    assert not any("middle" in label for label in labels)


def test_probabilities_too_small_for_three_decimals_are_below_them():
    rows = [TraceCell(**(vars(row) | {"corrupted": 2e-5, "restored": 2e-5})) for row in cells(effects_of(0))]
    figure = prompt_figure(trace_grids(rows))
    assert "<0.001 with noise" in figure.get_suptitle()


def test_lines_hold_the_average_and_its_interval(traced):
    figure = traces.line_figure(traced)
    assert [panel.get_title() for panel in figure.axes] == [MEDIATOR_ROWS[mediator].title() for mediator in MEDIATORS]
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    expected = np.mean([grid.effects[2] for grid in traced if grid.mediator == "hidden"], axis=0)
    np.testing.assert_allclose(drawn["last subject token (n=3)"], expected)
    assert not any("middle" in label for label in drawn)
    assert len(figure.axes[0].collections) == 5  # one interval per line


def test_a_single_fact_has_no_interval(traced):
    one = [grid for grid in traced if grid.name == "known_1"]
    for figure in (traces.average_figure(one), traces.line_figure(one), traces.severed_figure(one)):
        title = figure.get_suptitle()
        assert "n=1 fact" in title
        assert not [words for words in ("interval", "nan", " to ") if words in title], title
    assert "95% intervals" in traces.line_figure(traced).get_suptitle()
    assert "95% intervals" in traces.severed_figure(traced).get_suptitle()


def test_bars_compare_the_last_subject_token_severed_and_not(traced):
    figure = traces.severed_figure(traced)
    bars = {
        group.get_label(): [bar.get_height() for bar in group]
        for group in figure.axes[0].containers
        if group.get_label()[0] != "_"
    }
    assert list(bars) == ["hidden state", "hidden state, attention severed", "hidden state, MLP severed"]
    expected = np.mean([grid.effects[2] for grid in traced if grid.mediator == "hidden"], axis=0)
    np.testing.assert_allclose(bars["hidden state"], expected)


def test_bars_without_anything_to_compare_are_refused(traced):
    with pytest.raises(InputError, match="needs grids of the mediator hidden and of a severed mediator"):
        traces.severed_figure([grid for grid in traced if grid.mediator == "hidden"])


def test_windows_are_named_with_their_size():
    grids = trace_grids(rows_of(mediators=("mlp_window",)))
    assert panels(traces.average_figure(grids, window=10))[0].get_title() == "MLP, 10 layers"


# ------------------------------------------------------------------------------------------------ files


def test_the_same_numbers_give_the_same_files(traced, tmp_path):
    for name in ("one", "two"):
        written = save(traces.line_figure(traced), tmp_path / name)
        assert written == [tmp_path / f"{name}.png", tmp_path / f"{name}.pdf"]
    for ending in ("png", "pdf"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    assert b"CreationDate" not in (tmp_path / "one.pdf").read_bytes()
    assert matplotlib.image.imread(tmp_path / "one.png").std() > 0.01


def test_figures_are_drawn_where_there_is_no_model_and_nothing_but_the_table(finished_run, tmp_path, capsys):
    (finished_run / "progress.jsonl").unlink()
    assert run("figures", finished_run, "-o", tmp_path / "new" / "figures", "--prompts", 2) == 0
    names = {"average_heatmap", "average_lines", "severed_bars", "fact_known_0", "fact_known_1"}
    files = {f"{name}.{ending}" for name in names for ending in ("png", "pdf")} | {"averages.csv"}
    assert {path.name for path in (tmp_path / "new" / "figures").iterdir()} == files
    assert "5 figures, each as PNG and PDF" in capsys.readouterr().err


def test_plots_load_no_model_code():
    code = "import sys, interpret.figures.traces, interpret.tracing.tables; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "interpret.figures.traces" in loaded
    assert not loaded & {"torch", "transformers"}
    assert "matplotlib.pyplot" not in loaded, "pyplot would open windows, and keep every figure in memory"


def test_facts_are_chosen_and_the_averages_are_those_of_the_scheme(finished_run, tmp_path, traced):
    chosen = ["--fact", "known_2", "--buckets", "kt"]
    assert run("figures", finished_run, "-o", tmp_path / "figures", *chosen) == 0
    assert {path.name for path in (tmp_path / "figures").glob("fact_*")} == {"fact_known_2.png", "fact_known_2.pdf"}
    averages = from_csv(TraceAverage, (tmp_path / "figures" / "averages.csv").read_bytes())
    assert averages == trace_averages(traced, scheme="kt")


def test_a_single_mediator_has_no_bars(finished_run, tmp_path):
    rows = [row for row in rows_of() if row.mediator == "hidden"]
    with storage.open_run(tmp_path / "one", TraceCell, identity={}, circumstances={}, units=["a"]) as opened:
        opened.write("a", rows)
    assert run("figures", tmp_path / "one", "-o", tmp_path / "figures", "--prompts", 0) == 0
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {"average_heatmap", "average_lines"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--fact", "knwon_1"], r"error: the run has no fact or prompt 'knwon_1'; did you mean 'known_1'\?"),
        (["--buckets", "roma"], r"error: unknown bucket scheme 'roma'; did you mean 'rome'\? Allowed: rome, kt"),
        (["-o", "{run}/table.csv"], r"table.csv: cannot be created: File exists"),
    ],
)
def test_a_users_mistake_is_one_message(finished_run, tmp_path, capsys, change, message):
    change = [word.format(run=finished_run) for word in change]
    assert run("figures", finished_run, "-o", tmp_path / "figures", *change) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_what_is_no_trace_run_is_one_message(tmp_path, capsys):
    assert run("figures", tmp_path) == 2
    assert f"error: {tmp_path} is not a run folder: it has no manifest.json" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_a_run_without_rows_is_one_message(tmp_path, capsys):
    with storage.open_run(tmp_path / "run", TraceCell, identity={}, circumstances={}, units=["a"]):
        pass
    assert run("figures", tmp_path / "run", "-o", tmp_path / "figures") == 2
    assert "run has no rows: the run has not finished any unit yet; resume it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (["exact"], ""),
        (["approximate"], "all cells are estimates"),
        (
            ["approximate", "approximate", "approximate", "exact"],
            "75% of the cells that can have an effect are estimates",
        ),
    ],
)
def test_titles_say_how_much_is_estimated(methods, words):
    rows = [replace(row, method=methods[number % len(methods)]) for number, row in enumerate(rows_of())]
    traced = trace_grids(rows)
    of_fact = [grid for grid in traced if grid.name == "known_1"]
    figures = [
        prompt_figure(of_fact),
        traces.average_figure(traced),
        traces.line_figure(traced),
        traces.severed_figure(traced),
    ]
    for figure in figures:
        assert ("estimates" in figure.get_suptitle()) == bool(words)
        assert words in figure.get_suptitle()
