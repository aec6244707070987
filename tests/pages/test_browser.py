"""The page of a run as a reader uses it, in a real headless Chromium."""

import pytest
from selenium.webdriver import Keys
from selenium.webdriver.support.select import Select

from interpret.pages.interpretations import interpretation_page
from reference.browser import LOWEST_CONTRAST, RGB
from reference.interpretation_page import HOSTILE, text_of
from reference.interpretation_records import made


def fact(layer, token, template="summarize"):
    return {
        "Interpretation": text_of("fact_1", template, layer, token),
        "Control: nothing inserted": f" the control of fact_1 by {template}",
        f"Wrong vector (Layer {layer}, token 0 “The”)": f" wrong vector in {layer}",
    }


def test_tokens_stand_across_and_layers_down(page):
    assert page.grid() == (["0", "5", "10"], ["The", "·E", "iffel", "·Tower"])
    words = page.cell(5, 2).text
    assert words.startswith("fact_1 by summarize: layer 5 says of token 2")
    assert words.endswith("+0.10")  # the mean of 0.4 and -0.2


def test_a_cell_has_the_colour_of_its_score(page):
    full, none = (page.run(f"return {RGB}", page.cell(0, token)) for token in (0, 3))
    red, _, blue, *alpha = full
    assert (blue > red, alpha) == (True, [pytest.approx(0.2 / 0.3, abs=0.01)])
    assert none[3] == pytest.approx(0.05 / 0.3, abs=0.01)
    page.choose("shade", "highest relevancy")
    assert page.run(f"return {RGB}", page.cell(0, 3))[3] == pytest.approx(0.4, abs=0.01)
    assert [page.one(f"#legend-{end}").text for end in ("low", "high")] == ["−1.0", "+1.0"]


def test_a_click_shows_the_full_text_and_the_controls_beside_it(page):
    assert page.read() is None
    page.cell(5, 2).click()
    assert page.read() == fact(5, 2)
    own, control = page.all(".card")[:2]
    assert own.rect["y"] + own.rect["height"] < control.rect["y"]
    grid, dock = page.one("#frame").rect, page.one("#dock").rect
    assert grid["x"] + grid["width"] <= dock["x"], "the panel stands beside the grid"
    page.look(width=390)
    assert page.one("#dock").rect["x"] == 0
    page.one("#close").click()
    assert page.read() is None


def test_each_token_of_the_text_has_the_colour_of_its_own_score(page):
    page.cell(5, 2).click()
    first, second = page.all(".card.own .reading > span")
    (_, _, blue, strong), (red, _, blue_too, weak) = (page.run(f"return {RGB}", one) for one in (first, second))
    assert (strong, weak) == (pytest.approx(0.8, abs=0.01), pytest.approx(0.4, abs=0.01))
    assert blue > 200 > 100 > blue_too
    assert red > 200
    assert second.get_attribute("title") == "token 2, id 101\n−0.200: 0.400 with the state, 0.600 without"


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("a tall\n", ["a", " tall", "\n"], [["a", [0]], [" tall", [1]], ["\n", [2]]]),
        ("a tall one", ["a", "tall", "", "one"], [["a", [0]], [" tall", [1]], ["", [2]], [" one", [3]]]),
        ("so 🙂 ok", ["so", " \ufffd", "\ufffd", "\ufffd", " ok"], [["so", [0]], [" 🙂", [1, 2, 3]], [" ok", [4]]]),
        ("🙂 ok", ["\ufffd", "\ufffd", "ok"], [["🙂 ", [0, 1]], ["ok", [2]]]),
        ("語\ufffd", ["\ufffd", "\ufffd", "\ufffd"], [["語\ufffd", [0, 1, 2]]]),
        ("a b and more", ["a", " b"], [["a", [0]], [" b", [1]], [" and more", []]]),
        ("other words", ["a", "tall"], None),
        ("", [], []),
    ],
    ids=[
        "exact",
        "without spaces",
        "parts, spaces",
        "parts, no spaces",
        "only parts",
        "a rest",
        "another text",
        "empty",
    ],
)
def test_tokens_are_found_in_the_text_they_make_up(page, text, pieces, expected):
    cut = page.run("return slices(arguments[0], arguments[1])", text, pieces)
    assert cut == expected
    assert cut is None or "".join(one for one, _ in cut) == text


def written(page, tmp_path, records):
    """Another page, opened."""
    path = tmp_path / "other.html"
    path.write_text(interpretation_page(records, {}), encoding="utf-8")
    return page.opened(file=path)


def test_where_tokens_cannot_be_found_the_scores_follow_the_text_in_order(page, tmp_path):
    unclear = made(layer_idx=1, token_idx=1, interpretation_text="other words")
    written(page, tmp_path, [unclear]).cell(1, 1).click()
    assert page.read()["Interpretation"] == "other words"
    assert [box.text for box in page.all(".strip span")] == ["1", "2", "3"]
    assert page.run(f"return {RGB}", page.all(".strip span")[1])[3] == pytest.approx(0.8, abs=0.01)


def test_gains_over_the_controls_are_marked_shown_and_choosable(page, tmp_path):
    gains = {"gain_over_nothing": 1.5, "gain_over_wrong_vector": -0.25, "gain_over_text": 0.75}
    gains |= {"wrong_token_idx": 3, "site": "mlp_out"}
    wrong = {"probability_with_wrong_vector": [0.125, 0.25, 0.5], "probability_with_text": [0.5, 0.125, 0.25]}
    more = made(layer_idx=0, token_idx=0, says_more_than_controls=True, **gains, **wrong)
    less = made(layer_idx=0, token_idx=1, says_more_than_controls=False, **gains, **wrong)
    written(page, tmp_path, [more, less])
    assert [page.cell(0, token).text.split("\n")[-1] for token in (0, 1)] == ["−0.40 ◆", "−0.40"]
    assert page.one("#legend-own").is_displayed()
    page.choose("shade", "gain over nothing")
    assert page.cell(0, 0).text.endswith("+1.50 ◆")
    page.choose("shade", "gain over a wrong state")
    assert page.cell(0, 0).text.endswith("−0.25 ◆")
    page.choose("shade", "gain over the text")
    assert page.cell(0, 0).text.endswith("+0.75 ◆")
    assert page.one("#legend-own").text.endswith(
        "with nothing, and with another token’s state, and with the prompt’s own text in its place"
    )
    page.cell(0, 0).click()
    text = page.one(".card").text
    for shown in (
        "gain over nothing +1.50",
        "gain over a wrong state −0.25",
        "site\nmlp_out",
        "wrong state\nof token 3 “ Tower”",
        "gain over the text +0.75",
        "◆ all gains above 0",
    ):
        assert shown in text
    page.one(".card summary").click()
    assert page.one(".card tr:nth-child(3)").text == "·tall 0.300 0.700 −0.400 0.250 0.125"


@pytest.mark.parametrize("look", [{}, {"width": 390}, {"scheme": "dark"}])
def test_a_text_that_says_nothing_is_marked_as_such_and_not_by_the_controls(page, tmp_path, look):
    judged = {"gain_over_nothing": 1.5, "gain_over_text": 0.75}
    silent = made([" is"] * 4, layer_idx=0, token_idx=0, says_nothing=True, says_more_than_controls=False, **judged)
    speaking = made(layer_idx=0, token_idx=1, says_more_than_controls=False, **judged)
    written(page, tmp_path, [silent, speaking, made(layer_idx=0, token_idx=2, says_more_than_controls=True, **judged)])
    page.look(**look)
    marks = [page.cell(0, token).text.split()[-1] for token in range(3)]
    assert marks == ["∅", "−0.40", "◆"]
    legend = page.one("#legend-silent")
    assert (legend.is_displayed(), legend.text[:15]) == (True, "∅ says nothing:")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    page.cell(0, 0).click()
    figures = page.one(".card .figures").text
    assert "∅ says nothing" in figures
    assert "gains above 0" not in figures


def test_gains_are_not_offered_where_no_row_has_one(page, tmp_path):
    written(page, tmp_path, [made(layer_idx=0, token_idx=0)])
    assert [one.text for one in Select(page.one("#shade")).options] == ["mean relevancy", "highest relevancy"]
    assert not page.one("#legend-own").is_displayed()
    assert not page.one("#legend-silent").is_displayed()


def test_a_state_that_failed_says_so_in_its_cell(page, tmp_path):
    written(page, tmp_path, [made(layer_idx=0, token_idx=0), made([], layer_idx=0, token_idx=1, kind="failed")])
    assert page.cell(0, 1).text == "failed\nno score"
    page.cell(0, 1).click()
    assert page.one(".card").text.split("\n")[:2] == [
        "Failed",
        "This state could not be interpreted: it is not finite.",
    ]


def test_one_cell_is_reached_by_tab_and_the_others_by_arrows(page):
    assert len(page.all('td[tabindex="0"]')) == 1
    page.to_grid()
    assert page.focus() == (0, 0)
    walk = [
        (Keys.ARROW_RIGHT, (0, 1)),
        (Keys.ARROW_DOWN, (5, 1)),
        (Keys.ARROW_LEFT, (5, 0)),
        (Keys.ARROW_LEFT, (5, 0)),
        (Keys.END, (5, 3)),
        (Keys.ARROW_UP, (0, 3)),
        (Keys.ARROW_UP, (0, 3)),
        (Keys.PAGE_DOWN, (10, 3)),
        (Keys.HOME, (10, 0)),
    ]
    for key, place in walk:
        page.press(key)
        assert page.focus() == place
    assert len(page.all('td[tabindex="0"]')) == 1
    assert page.read() is None


def test_the_focus_is_seen(page):
    page.to_grid()
    style, width = page.run(
        "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
    )
    assert (style, width) == ("solid", "3px")


def test_enter_opens_arrows_read_on_and_escape_closes(page):
    page.to_grid()
    page.press(Keys.ENTER)
    assert (page.read(), page.focus()) == (fact(0, 0), (0, 0))
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert (page.read(), page.focus()) == (fact(5, 1), (5, 1))
    assert [
        (one.get_attribute("data-layer"), one.get_attribute("data-token")) for one in page.all('[aria-selected="true"]')
    ] == [("5", "1")]
    page.press(Keys.ENTER)
    assert page.focus() == "dock-title"
    page.press(Keys.ESCAPE)
    assert (page.read(), page.focus()) == (None, (5, 1))


def test_what_is_open_hides_neither_its_cell_nor_the_headings(page):
    page.choose("prompt", "wide_1: t0 t1 t2 t3 t4 t5 t6 t7 t8 t9 t10 t11 t12 t13 t14 t15 t16 t17 t18 t19 …")
    for size in ({"width": 1280, "height": 800}, {"width": 390, "height": 844}):
        page.look(**size)
        page.to_grid()
        page.press(Keys.ENTER)
        for key in (Keys.PAGE_DOWN, Keys.END, Keys.PAGE_UP, Keys.HOME):
            page.press(key)
            cell, dock = page.run("return document.activeElement").rect, page.one("#dock").rect
            top = page.run("return scrollY")
            heading, side = page.one("#grid thead th").rect, page.one("#grid tbody th").rect
            assert cell["y"] >= heading["y"] + heading["height"] - 1 >= top
            assert cell["x"] >= side["x"] + side["width"] - 1
            below = size["width"] < 1000
            assert cell["y"] + cell["height"] <= (dock["y"] if below else size["height"] + top) + 1
            assert cell["x"] + cell["width"] <= (size["width"] if below else dock["x"]) + 1
        page.press(Keys.ESCAPE)


def test_the_prompt_filter_shows_another_prompt(page):
    page.cell(10, 3).click()
    page.choose("prompt", f"odd_1: {HOSTILE[:70]}…")
    assert page.grid() == (["0", "3", "7"], [HOSTILE.replace(" ", "·"), "שלום"])
    assert "fact_1" not in page.one("#grid").text
    assert page.one("#tokens").text == HOSTILE + "שלום"
    assert page.read()["Interpretation"] == text_of("odd_1", "summarize", 0, 0)


def test_the_template_filter_shows_what_another_template_says(page):
    page.choose("template", "about")
    page.cell(0, 1).click()
    assert page.read() == fact(0, 1, "about")
    page.choose("template", "summarize")
    assert page.read() == fact(0, 1)


def test_the_layer_filter_takes_rows_away_and_gives_them_back(page):
    labels = {one.text: one for one in page.all("#layers label")}
    assert list(labels) == [str(layer) for layer in range(20)]  # those of all prompts
    labels["5"].click()
    assert page.grid()[0] == ["0", "10"]
    page.one("#no-layers").click()
    assert not page.one("#grid").is_displayed()
    assert page.one("#nothing").text == "No layer is selected."
    next(one for one in page.all("#layers label") if one.text == "10").click()
    assert page.grid()[0] == ["10"]
    page.one("#all-layers").click()
    assert page.grid()[0] == ["0", "5", "10"]


def test_a_layer_is_chosen_with_the_keyboard(page):
    page.run("document.querySelector('#layers input').focus()")
    page.press(Keys.SPACE)
    assert page.grid()[0] == ["5", "10"]


def test_a_prompt_without_interpretations_by_a_template_says_so(page):
    page.choose("template", "about")
    page.choose("prompt", f"odd_1: {HOSTILE[:70]}…")
    assert page.one("#nothing").text == "This prompt has no interpretations with this interpretation prompt."


def test_the_address_brings_the_reader_back_to_the_place(page):
    page.choose("template", "about")
    page.cell(5, 2).click()
    page.run("return new Promise(done => setTimeout(done, 400))")
    address = page.browser.current_url.split("#")[1]
    page.opened(address)
    assert page.read() == fact(5, 2, "about")
    assert page.focus() == (5, 2)


@pytest.mark.parametrize(
    "address", ["prompt=99&template=-1&shade=toString&hidden=x&open=77,1", "open=", "%%%", "open=0,0&prompt=NaN"]
)
def test_a_wrong_address_opens_the_page_all_the_same(page, address):
    page.opened(address)
    assert page.all("#grid td")


def test_texts_are_shown_as_texts(page):
    page.choose("prompt", f"odd_1: {HOSTILE[:70]}…")
    page.cell(0, 0).click()
    assert page.one("#continuation").text == f"The model continues: {HOSTILE}"
    assert page.one("#dock-title").text == f"Layer 0, token 0 {HOSTILE.replace(' ', '·')}"
    assert page.browser.title == "Interpretations of demo"
    assert page.all("img") == []
    assert [page.cell(3, token).text.split("\n") for token in (0, 1)] == [["empty", "no score"], ["↵↵", "−0.45"]]


def test_the_provenance_opens(page):
    assert not page.one("#provenance dl").is_displayed()
    page.one("#provenance summary").click()
    assert "versions.torch\n2.4.0" in page.one("#provenance").text


def test_the_layer_column_and_the_token_row_stay_while_a_wide_prompt_scrolls(page):
    page.choose("prompt", "wide_1: t0 t1 t2 t3 t4 t5 t6 t7 t8 t9 t10 t11 t12 t13 t14 t15 t16 t17 t18 t19 …")
    corners = [page.one("#grid tbody th"), page.one("#grid thead th")]
    before = corners[0].rect["x"], corners[1].rect["y"]
    page.run("document.getElementById('frame').scrollTo(1000, 700)")
    assert page.run("return document.getElementById('frame').scrollLeft") == 1000
    assert (corners[0].rect["x"], corners[1].rect["y"]) == before


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(page, width):
    page.look(width=width)
    page.cell(5, 2).click()
    page.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_every_text_on_the_screen_is_readable(page, scheme, dark):
    page.look(scheme=scheme)
    page.cell(5, 2).click()
    page.run("for (const one of document.querySelectorAll('details')) one.open = true")
    ground = page.run(f"return {RGB}", page.one("body"))
    assert (max(ground[:3]) < 60, min(ground[:3]) > 200) == (dark, not dark)
    lowest, texts = page.run(LOWEST_CONTRAST)
    assert texts > 60
    assert lowest >= 4.5


def test_a_screen_reader_finds_a_grid_with_headings_and_cells(page):
    nodes = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]]
    roles = [role for role, _ in named]
    assert ("grid", "Interpretations: layers down, tokens across") in named
    assert (roles.count("gridcell"), roles.count("columnheader"), roles.count("rowheader")) == (12, 5, 3)
    for name in ("Prompt", "Interpretation prompt", "Colour of a cell"):
        assert ("combobox", name) in named
    assert {("checkbox", "0"), ("checkbox", "5"), ("checkbox", "10")} <= set(named)


def test_only_the_exceptions_are_marked(page, tmp_path):
    passes = {0: True, 1: True, 2: False}
    written(page, tmp_path, [made(layer_idx=0, token_idx=n, says_more_than_controls=p) for n, p in passes.items()])
    assert [page.cell(0, token).text.split("\n")[-1] for token in passes] == ["−0.40", "−0.40", "−0.40 ◇"]
    assert page.one("#legend-own").text.startswith("◇ not all gains above 0: not more likely")


def test_the_tokens_around_those_that_were_read_are_folded(page, tmp_path):
    tokens = [f"<{n}>" for n in range(9)]
    written(page, tmp_path, [made(layer_idx=0, token_idx=n, prompt_token_list=tokens) for n in (5, 6)])
    assert page.one("#tokens").text == "… 5 tokens<5><6><7><8>"
    page.one(".fold").click()
    assert page.one("#tokens").text == "".join(tokens)


def test_the_grid_comes_first_on_phones(page):
    assert page.one("#frame").rect["y"] > page.one(".filters").rect["y"]
    page.look(width=390)
    assert page.one("#frame").rect["y"] < page.one(".filters").rect["y"] < page.one(".texts").rect["y"]
