"""Every result shows itself: in a terminal, a notebook, a page, a figure and a file."""

import re
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console

import interpret
from interpret.display.heatmaps import Band, Heatmap, Panel, plain_headings
from interpret.display.page import MOST_CELLS, framed
from interpret.display.shown import Rows
from interpret.display.terminal import Tables
from interpret.drawing import palette
from interpret.errors import InputError
from interpret.probing import LensFrame
from interpret.selfie.show import MOST_SHOWN, Interpretations
from interpret.tracing import Traces
from reference.house import IMPORTS, LEVEL, room_of
from reference.interpretation_records import read_back
from reference.results import HOSTILE, RESULTS, heads, interpretations, lens, lens_frame, neurons, shares, traces
from reference.trace_rows import cells

every_result = pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)


def html_of(result):
    """The page of a result; DataFrames keep the ``to_html`` of pandas."""
    return "".join(result._pieces())


def terminal(result, width=160):
    console = Console(file=StringIO(), width=width, legacy_windows=False)
    console.print(Tables(result.view()))
    return console.file.getvalue()


@every_result
def test_it_has_a_table_a_page_a_figure_and_a_file(result, tmp_path):
    frame = result.to_frame()
    assert type(frame) is pd.DataFrame
    assert len(frame)
    assert result.show(html=tmp_path / "page.html").read_text(encoding="utf-8") == html_of(result)
    figure = result.figure()
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook displays it"
    assert any(place.get_images() or place.collections for place in figure.axes)
    path = result.save(tmp_path / "result.csv")
    message = re.escape(f"{path} already exists; give overwrite=True to replace it, or choose another name")
    with pytest.raises(InputError, match=f"^{message}$"):
        result.save(path)
    assert result.save(path, overwrite=True) == path
    assert path.stat().st_size


@every_result
def test_in_a_notebook_it_is_light_and_closed(result):
    shown = result._repr_html_()
    assert len(shown) < 100_000
    assert shown.count("<iframe") == shown.count('sandbox="allow-scripts"') == 1
    assert "allow-same-origin" not in shown
    assert "<script" not in shown, "the page is escaped inside srcdoc"


@every_result
def test_show_displays_the_page_in_a_notebook(result, monkeypatch):
    ipython = pytest.importorskip("IPython.display", reason="notebooks are tested where IPython is installed")
    shown = []
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr(Console, "__init__", lambda self: None)
    monkeypatch.setattr(ipython, "display", shown.append)
    result.show()
    assert [one.data for one in shown] == [framed(html_of(result))]


@every_result
def test_its_texts_are_escaped(result):
    page = html_of(result)
    assert "<img" not in page
    assert HOSTILE not in page


@every_result
def test_a_terminal_shows_it_within_its_width(result):
    text = terminal(result, 60)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 60
    assert "nan" not in text.lower()


@pytest.mark.parametrize("result", [one for one in RESULTS.values() if isinstance(one, Rows)])
def test_saved_rows_are_read_back_as_those_of_a_run(result, tmp_path):
    assert interpret.read_table(result.save(tmp_path / "rows.csv"), type(result).record_type) == list(result)
    assert repr(result) == f"{type(result).__name__}({len(result)} rows)"


def test_inputs_are_counted_and_a_missing_one_is_named():
    assert RESULTS["traces"].figure(1).get_suptitle().startswith("b: P(Japan)")
    with pytest.raises(InputError, match="input 2 does not exist; this result has 2, counted from 0"):
        RESULTS["traces"].figure(2)
    for single in (neurons(), lens(), lens_frame()):
        with pytest.raises(InputError, match="input 1 does not exist; this result has 1, counted from 0"):
            single.figure(1)


def test_a_notebook_shows_as_much_of_a_long_result_as_is_light():
    one = cells(np.zeros((20, 40)).tolist(), span=(0, 1))
    many = Traces(type(row)(**(vars(row) | {"name": f"n{n}"})) for n in range(12) for row in one)
    shown = many._repr_html_()
    assert f"{MOST_CELLS // 800} of 12 are shown here; show() displays all" in shown
    long = Interpretations(interpretations() * (MOST_SHOWN // 5 + 1))
    assert f"{MOST_SHOWN} of {len(long)} rows; show() displays all" in long._repr_html_()


def test_a_result_without_rows_says_so():
    assert Traces()._repr_html_() == repr(Traces()) == "Traces(0 rows)"
    with pytest.raises(InputError, match="no rows"):
        Traces().show()


def test_nothing_that_shows_a_single_result_imports_from_above():
    for module in ("tracing.show", "locating.show", "probing.show", "selfie.show", "attribution.result.show"):
        imported = {room_of(name) for name in IMPORTS[f"interpret.{module}"]} - {module.partition(".")[0]}
        assert imported <= {name for name, level in LEVEL.items() if level <= LEVEL["facts"]}, module
    for module, imported in IMPORTS.items():
        if room_of(module) in ("display", "drawing", "pages"):
            assert {LEVEL[room_of(name)] for name in imported} <= set(range(LEVEL["display"] + 1)), module


# ---- The cells


def cell_texts(page):
    return re.findall(r'<td class="[^"]*" data-value="([^"]*)">([^<]*)<', page)


def test_a_trace_has_the_effects_of_every_cell():
    rows = cells([[0.25, -0.004], [0.5, 0.0], [-0.125, 0.0]])
    values = cell_texts(html_of(Traces(rows)))
    assert values == [
        ("+0.25", ".25"), ("−0.004", "0"), ("+0.5", ".50"), ("+0", "0"), ("−0.125", "−.12"), ("+0", "0"),
    ]  # fmt: skip


def test_a_lens_has_predictions_and_the_probability_of_what_is_followed():
    values = cell_texts(html_of(lens()))
    assert values[1] == ("Paris (0.25)", "Paris")
    assert values[2] == ("↵ (0)", "↵")
    assert values[-1] == ("0.25", "0.250")
    assert "P(Paris) (target)" in html_of(lens())


def test_shares_are_contrasted_with_those_of_the_foil():
    page = html_of(shares())
    assert page.index("logit(Paris) − logit(London)") < page.index(">logit(Paris)<")
    first = shares()[1]
    assert cell_texts(page)[0][0] == f"{first.share - first.foil_share:+.6g}".replace("-", "−")


def test_heads_show_what_they_attend_to():
    assert "Attended to from token 2 “Tower”" in html_of(heads())
    assert [value for value, _ in cell_texts(html_of(heads()))][-1] == "0.5"


def test_the_most_significant_neurons_come_first():
    view = neurons().view()
    (panel,) = view.panels()
    assert [row.text for row in panel.grids[0].bands[0].rows][:3] == ["1.0", "1.1", "1.2"]
    assert len(panel.grids[0].bands[0].rows) == 50


def test_frames_stay_frames():
    frame = lens_frame()
    assert type(frame[frame["layer"] == 1]) is pd.DataFrame
    assert not isinstance(frame.to_frame(), LensFrame)
    assert frame.to_html().startswith("<table"), "that of pandas"


def test_a_result_of_interpret_is_a_page_of_its_rows():
    result = RESULTS["interpreted"]
    assert len(read_back(result.to_html())) == 5
    assert list(result.to_frame()) == ["layer", "interpretation"]


# ---- Colours


def test_pages_and_figures_have_the_same_hues():
    style = Path(interpret.pages.__file__).with_name("base.css").read_text(encoding="utf-8")
    light = style.partition("@media")[0]
    for name, colour in (("positive", palette.POSITIVE), ("negative", palette.NEGATIVE)):
        (rgb,) = re.findall(rf"--{name}: ([\d ]+);", light)
        assert [round(255 * part) for part in to_rgb(colour)] == list(map(int, rgb.split()))


def luminance(colour):
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def test_more_is_always_darker():
    both = palette.diverging()
    for colours, start, end in ((palette.sequential(), 0, 1), (both, 0.5, 1), (both, 0.5, 0)):
        values = [luminance(colours(at)) for at in np.linspace(start, end, 30)]
        assert all(one > other for one, other in zip(values, values[1:], strict=False))


# Viénot, Brettel & Mollon 1999, "Digital video colourmaps for checking the legibility of displays by dichromats":
# linear RGB seen without the long, or without the middle cones.
DICHROMATS = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


@pytest.mark.parametrize("kind", DICHROMATS)
@pytest.mark.parametrize("strength", [0.5, 0.75, 1.0])
def test_the_two_signs_differ_for_colour_blind_readers(kind, strength):
    colours = palette.diverging()
    seen = [np.array(DICHROMATS[kind]) @ np.array(colours(0.5 + sign * strength / 2)[:3]) ** 2.2 for sign in (-1, 1)]
    yellow_against_blue = [one[2] - one[0] for one in seen]
    assert yellow_against_blue[0] < -0.02
    assert yellow_against_blue[1] > 0.1


def test_a_panel_without_negative_values_has_a_scale_from_zero():
    grid = Heatmap("", "layer", plain_headings([0]), [Band("", plain_headings([0]), np.array([[0.5]]))])
    assert (Panel("a", [grid]).lowest, Panel("a", [grid], signed=False).lowest) == (-0.5, 0.0)
    assert (Panel("a", [grid]).number(0.5), Panel("a", [grid], signed=False).number(0.5)) == ("+0.500", "0.500")


def test_traces_of_several_facts_are_named():
    assert [panel.title for panel in traces().view().panels()] == ["a: Mount Fuji is in", "b: Mount Fuji is in"]
