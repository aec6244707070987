"""Display of attributions: every token and signed score, in a terminal and on a page."""

import re
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from interpret.attribution._attribute import attribute
from interpret.attribution.result.attribution import Attribution
from interpret.display.heatmaps import level, short, visible
from interpret.display.page import framed, shade
from interpret.display.terminal import Tables
from interpret.errors import InputError
from reference.attributions import TOKENS, assert_same, made, made_one, staircase
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, wide_model

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('1')\">&amp;"


def page(attribution):
    return attribution.to_html()


class Grids(HTMLParser):
    """The tables of a page, as rows of (tag, class, text) without positions."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.names, self.cell, self.skip = [], [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self.tables.append([])
            self.names.append(attributes["aria-label"])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.cell = [tag, attributes.get("class", ""), ""]
            self.tables[-1][-1].append(self.cell)
        self.skip = attributes.get("class") == "position"

    def handle_endtag(self, tag):
        self.skip = False
        if tag in ("th", "td"):
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None and not self.skip:
            self.cell[2] += data

    def texts(self, number=0):
        return [[text for _, _, text in row] for row in self.tables[number]]


def terminal(attribution, width=200, **options):
    console = Console(file=StringIO(), width=width, **options)
    console.print(Tables(attribution.view()))
    return console.file.getvalue()


def small():
    scores = np.array([[1.0, -2.0], [0.5, 0.0], [np.nan, -0.25], [np.nan, np.nan]], dtype=np.float32)
    return made(made_one(("The", " the", " the", " end"), 2, scores=scores))


def test_the_page_has_every_token_and_score_with_repeated_tokens_kept():
    assert Grids(page(small())).texts() == [
        ["token", "·the", "·end"],
        ["The", "+1.00", "−2.00"],
        ["·the", "+0.50", "0.00"],
        ["·the", "", "−0.25"],
        ["probability", "0.25", "0.5"],
    ]


def test_the_colour_of_a_cell_is_its_score_around_zero():
    rows = Grids(page(small())).tables[0][1:4]
    assert [[kind for tag, kind, _ in row if tag == "td"] for row in rows] == [
        ["p10", "n20"],
        ["p5", ""],
        ["missing", "n2"],
    ]
    assert ".n20{background-color:rgb(var(--negative)/1)}" in page(small())
    assert ".p5{background-color:rgb(var(--positive)/0.25)}" in page(small())


def test_numbers_are_there_in_full():
    scores = np.array([[1 / 3], [np.nan]])
    assert 'data-value="+0.333333">+0.333<' in page(made(made_one(("a", "b"), 1, scores=scores)))


def test_a_width_is_summed():
    scores = np.array([[[1.0, -3.0]], [[np.nan, np.nan]]])
    assert Grids(page(made(made_one(("a", "b"), 1, scores=scores)))).texts()[1] == ["a", "−2.00"]


def test_layers_stand_in_their_order_a_grid_for_each_token_and_site():
    names = [f"{site}.{layer}" for site in ("mlp_out", "attn_out") for layer in (10, 2, 0)]
    layers = {name: staircase(7, 5, 7, seed) for seed, name in enumerate(names)}
    grids = Grids(page(made(made_one(scores=None, layer_scores=layers))))
    assert [name.split(":")[:2] for name in grids.names] == [
        ["Token 5 “·the”", " attn_out"],
        ["Token 5 “·the”", " mlp_out"],
        ["Token 6 “·city”", " attn_out"],
        ["Token 6 “·city”", " mlp_out"],
    ]
    texts = grids.texts(3)
    assert texts[0] == ["layer", *map(visible, TOKENS[:6])]
    assert [row[0] for row in texts[1:]] == ["0", "2", "10"]
    largest = max(np.nanmax(np.abs(values)) for values in layers.values())
    assert texts[2][1:] == [short(value, largest) for value in layers["mlp_out.2"][:6, 1].tolist()]


def translated():
    source = {"source_tokens": (" I", "</s>"), "source_ids": (1, 2), "source_scores": np.array([[0.5], [-1.0]])}
    scores = np.array([[0.25], [np.nan]])
    return made(made_one(("<s>", " Je"), 1, scores=scores, **source))


def test_the_foil_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    attribution = made(made_one(("The", " the", " the", " end"), 2, foil_tokens=(" a", " start")))
    attribution.show()
    assert "The the → the end (foil: a start)" in capsys.readouterr().out
    assert "the end (foil: a start)" in page(attribution)


def test_source_and_text_are_bands_of_one_grid():
    assert Grids(page(translated())).texts() == [
        ["token", "·Je"],
        ["source"],
        ["·I", "+0.50"],
        ["</s>", "−1.00"],
        ["text"],
        ["<s>", "+0.25"],
        ["probability", "0.25"],
    ]
    shown = terminal(translated())
    words = [line.split() for line in shown.splitlines() if line.strip()]
    assert words[4:] == [
        ["source"],
        ["0", "·I", "+0.50"],
        ["1", "</s>", "−1.00"],
        ["text"],
        ["0", "<s>", "+0.25"],
        ["probability", "0.25"],
    ]


def test_diagnostics_of_a_method_are_shown():
    one = made_one(details={"r2": np.array([0.875, np.nan])})
    assert Grids(page(made(one))).texts()[-1] == ["r2", "0.875", ""]
    assert terminal(made(one)).splitlines()[-1].split() == ["r2", "0.875"]


def test_all_text_is_escaped():
    one = made_one((HOSTILE, "b", HOSTILE), 2, step_scores={HOSTILE: np.array([1.0])})
    text = page(made(one, one, method=HOSTILE, model=HOSTILE, options={HOSTILE: HOSTILE}))
    assert text.count("<script>") == 1
    assert "<img" not in text
    grid = Grids(text).texts()
    assert (grid[0][1], grid[-1][0]) == (visible(HOSTILE), HOSTILE)


def test_the_page_loads_nothing_and_names_its_own_style_and_script():
    text = page(small())
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/=]+'; script-src 'sha256-", text)
    assert not re.search(r"(src|href)=\"(?!data:,|#)", text)
    assert " style=" not in text


def test_the_page_tells_how_it_was_made():
    text = page(made(contrast="own_prefix", options={"n_steps": 50}, aggregation=("l2",)))
    for name, value in (("contrast", "own_prefix"), ("option n_steps", "50"), ("aggregated by", "l2")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert "<dt>contrast</dt>" not in page(small())


@pytest.mark.parametrize(
    "attribution",
    [
        Attribution([], made().info),
        made(made_one(("a", "b"), 1, scores=np.full((2, 1), np.nan))),
        made(made_one(("a", "b"), 1, scores=np.zeros((2, 1)))),
        made(made_one(("a", "b"), 1, scores=np.array([[np.inf], [-np.inf]]))),
        made(made_one(("a\ud800", "b"), 1, scores=np.zeros((2, 1)))),
        made(made_one(("a", "b"), 0, start=1, scores=np.zeros((2, 1)))),
    ],
    ids=["no input", "no score", "zeros", "infinite", "surrogate", "no prompt"],
)
def test_odd_attributions_are_shown(attribution):
    page(attribution).encode()
    assert terminal(attribution, legacy_windows=False)


def test_showing_changes_nothing():
    attribution = made(made_one(scores=staircase(7, 5, 7)[..., None] * np.ones(3)))
    terminal(attribution)
    page(attribution)
    assert_same(attribution, made(made_one(scores=staircase(7, 5, 7)[..., None] * np.ones(3))))


# ---- In a terminal


def test_the_terminal_has_every_token_and_score():
    lines = [line.split() for line in terminal(small()).splitlines() if line.strip()]
    assert lines == [
        ["Attribution", "of", "probability", "by", "occlusion,", "in:", "effect", "on", "probability"],
        ["The", "the", "→", "the", "end"],
        ["Score", "of", "each", "token", "for", "each", "attributed", "token"],
        ["token", "2", "·the", "3", "·end"],
        ["0", "The", "+1.00", "−2.00"],
        ["1", "·the", "+0.50", "0.00"],
        ["2", "·the", "−0.25"],
        ["probability", "0.25", "0.5"],
    ]


def test_the_terminal_colours_by_sign():
    text = terminal(small(), force_terminal=True, color_system="truecolor")
    assert "48;2;164;76;8m  −2.00" in text
    assert "48;2;35;63;120m  +1.00" in text
    assert "48;2;36;38;43m   0.00" in text


@pytest.mark.parametrize("width", [28, 40, 80])
def test_columns_that_do_not_fit_go_into_further_tables(width):
    tokens = tuple(f" token{number}" for number in range(14)) + ("東京タワー",) * 2
    attribution = made(made_one(tokens, 4, scores=staircase(16, 4, 16), step_scores={}))
    text = terminal(attribution, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    numbers = re.findall(r"[+−]?\d\.\d\d", text)
    assert len(numbers) == np.isfinite(staircase(16, 4, 16)).sum()
    assert "…" not in text


def test_control_characters_of_tokens_do_not_reach_the_terminal():
    one = made_one(("\x1b[31mred\x9b", "\x07b", "\r"), 2)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", terminal(made(one)))
    assert "␛[31mred�" in terminal(made(one))


# ---- The call


def test_show_draws_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert small().show() is None
    assert "+1.00" in capsys.readouterr().out


def test_show_in_a_notebook_displays_the_page_in_a_frame(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr(Console, "__init__", lambda self: None)
    monkeypatch.setattr(IPython.display, "display", shown.append)
    small().show()
    assert shown[0].data == framed(page(small()))
    assert shown[0].data.count("<") == 4
    assert 'sandbox="allow-scripts"' in shown[0].data


def test_show_writes_the_page(tmp_path):
    path = tmp_path / "a.html"
    assert small().show(html=path) == path
    assert path.read_text(encoding="utf-8") == page(small()) == small().to_html()
    message = f"{path} already exists; give overwrite=True to replace it, or choose another name"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        translated().show(html=path)
    assert path.read_text(encoding="utf-8") == page(small())
    translated().show(html=str(path), overwrite=True)
    assert path.read_text(encoding="utf-8") == page(translated())


# ---- Numbers and colours


@pytest.mark.parametrize(
    ("value", "largest", "text"),
    [
        (0.5, 1.0, "+0.50"),
        (-0.5, 0.9, "−0.500"),
        (12.3, 45.0, "+12.3"),
        (99999.0, 99999.0, "+99999"),
        (1e5, 1e5, "+1.0e+05"),
        (-0.00099, 0.00099, "−9.9e−04"),
        (-0.0001, 1.0, "0.00"),
        (0.0, 0.0, "0.00"),
        (float("nan"), 1.0, ""),
        (float("-inf"), 1.0, "−∞"),
    ],
)
def test_numbers_are_short_and_signed(value, largest, text):
    assert short(value, largest) == text


def test_colours_are_symmetric_and_end_at_the_largest():
    for value in np.linspace(-3, 3, 61):
        assert level(value, 2.0) == -level(-value, 2.0)
    assert [level(value, 2.0) for value in (0.0, 1.0, 2.0, 5.0, float("inf"))] == [0, 10, 20, 20, 20]
    assert [shade(value, 2.0) for value in (0.0, 0.01, -2.0)] == ["", "", "n20"]


# ---- Results of ``attribute``


@pytest.mark.parametrize("method", ["input_x_gradient", "layer_gradient_x_activation", "lime", "attention"])
def test_what_is_attributed_is_saved_and_shown(tmp_path, method):
    options = {"n_samples": 20} if method == "lime" else {}
    found = attribute(wide_model("llama"), TOKENIZER, [PROMPT], [TARGET], method=method, **options)
    assert_same(Attribution.load(found.save(tmp_path / "a.json")), found)
    tokens = set(map(visible, found.sequences[0].tokens[:-1]))
    cells = {text for table in Grids(found.to_html()).tables for row in table for _, _, text in row}
    assert tokens <= cells
    shown = terminal(found.aggregate("sum", normalize=True, subwords=True))
    assert "Tower" in shown
    assert "nan" not in shown
