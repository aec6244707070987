"""The page of an attribution in a real headless Chromium."""

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from reference.attributions import made, made_one, staircase
from reference.browser import LOWEST_CONTRAST, RGB, assert_quiet, chromium, look

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
TOKENS = ("The", " Eiff", "el", " in", " in", " Paris")
SCORES = np.array(
    [[1.0, -0.5, 0.2], [-2.0, 0.0, 0.3], [0.1, 0.2, 0.4], [np.nan, 0.7, -1.0], [np.nan, np.nan, 0.123456789]]
    + [[np.nan] * 3]
)


def layered():
    names = [f"{site}.{layer}" for site in ("attn_out", "mlp_out") for layer in range(3)]
    return made_one(
        TOKENS, 3, scores=None, layer_scores={name: staircase(6, 3, 6, seed) for seed, name in enumerate(names)}
    )


def translated():
    source = {"source_tokens": (" I", "</s>"), "source_ids": (1, 2), "source_scores": np.array([[0.5], [-1.0]])}
    return made_one(("<s>", " Je"), 1, scores=np.array([[0.25], [np.nan]]), **source)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("attribution") / "page.html"
    wide = made_one(tuple(f" word{n}" for n in range(60)), 30, scores=staircase(60, 30, 60))
    hostile = made_one((HOSTILE, "שלום", "b"), 2)
    return made(made_one(TOKENS, 3, scores=SCORES), layered(), translated(), hostile, wide).show(html=path)


@pytest.fixture
def page(browser, file):
    look(browser)
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(file.as_uri())
    yield browser
    assert_quiet(browser, file)


def section(page, number):
    return page.find_elements(By.CSS_SELECTOR, ".input")[number]


def cells(page, number):
    return section(page, number).find_elements(By.CSS_SELECTOR, "td[data-value]")


def press(page, *keys):
    ActionChains(page).send_keys(*keys).perform()


def click(page, cell):
    """Scroll a cell into view before using it, as a reader does."""
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    cell.click()


def readout(page):
    return page.find_element(By.ID, "readout").text


def test_colours_are_around_zero(page):
    ground = lambda cell: page.execute_script(f"return {RGB}", cell)  # noqa: E731
    first = cells(page, 0)
    assert [one.text for one in first[:4]] == ["+1.00", "−0.50", "+0.20", "−2.00"]
    assert ground(first[0]) == [92, 154, 255, 0.5]
    assert ground(first[3]) == [250, 142, 60]
    assert ground(first[4])[3:] == [0]


def test_the_number_is_read_out_in_full_under_the_mouse(page):
    assert (
        readout(page) == "Point at a cell to read its exact value, or move between cells with Tab and the arrow keys."
    )
    ActionChains(page).move_to_element(cells(page, 0)[-1]).perform()
    assert readout(page) == "token 4 “·in” for token 5 “·Paris”: +0.123457"


def test_one_cell_is_reached_by_tab_and_the_others_by_arrows(page):
    links = len(page.find_elements(By.CSS_SELECTOR, "nav a"))
    targets = len(section(page, 0).find_elements(By.CSS_SELECTOR, ".sentence .target"))
    press(page, *[Keys.TAB] * (1 + links + targets + 1))
    assert readout(page) == "token 0 “The” for token 3 “·in”: +1"
    walk = [
        (Keys.ARROW_DOWN, "token 1 “·Eiff” for token 3 “·in”: −2"),
        (Keys.ARROW_RIGHT, "token 1 “·Eiff” for token 4 “·in”: +0"),
        (Keys.PAGE_DOWN, "token 3 “·in” for token 4 “·in”: +0.7"),
        (Keys.ARROW_LEFT, "token 3 “·in” for token 4 “·in”: +0.7"),  # no score there
        (Keys.END, "token 3 “·in” for token 5 “·Paris”: −1"),
        (Keys.ARROW_DOWN, "token 4 “·in” for token 5 “·Paris”: +0.123457"),
        (Keys.PAGE_UP, "token 0 “The” for token 5 “·Paris”: +0.2"),
        (Keys.HOME, "token 0 “The” for token 3 “·in”: +1"),
    ]
    for key, text in walk:
        press(page, key)
        assert readout(page) == text
    assert len(section(page, 0).find_elements(By.CSS_SELECTOR, 'td[tabindex="0"]')) == 1
    style = page.execute_script("const s = getComputedStyle(document.activeElement); return [s.outlineStyle]")
    assert style == ["solid"]


def test_the_headings_of_a_cell_are_marked(page):
    click(page, cells(page, 0)[4])
    assert [one.text for one in page.find_elements(By.CSS_SELECTOR, "th.here .piece")] == ["·in", "·Eiff"]


def test_layers_of_one_written_token_are_shown_at_a_time(page):
    shown = lambda: [  # noqa: E731
        one.text.split(" · ")[0]
        for one in section(page, 1).find_elements(By.TAG_NAME, "figcaption")
        if one.is_displayed()
    ]
    assert shown() == ["Token 3 ·in"] * 2
    choice = Select(section(page, 1).find_element(By.TAG_NAME, "select"))
    assert [one.text for one in choice.options] == ["3 ·in", "4 ·in", "5 ·Paris"]
    choice.select_by_index(2)
    assert shown() == ["Token 5 ·Paris"] * 2
    last = [one for one in cells(page, 1) if one.is_displayed()][-1]
    click(page, last)
    expected = staircase(6, 3, 6, 5)[4, 2]
    assert readout(page) == f"layer 2 at token 4 “·in” for “·Paris”: {expected:+.6g}".replace("-", "−")


def test_source_and_text_are_read_in_one_grid(page):
    first = cells(page, 2)
    click(page, first[0])
    assert readout(page) == "token 0 “·I” for token 1 “·Je”: +0.5"
    press(page, Keys.PAGE_DOWN)
    assert readout(page) == "token 0 “<s>” for token 1 “·Je”: +0.25"


def test_texts_are_shown_as_texts(page):
    assert page.title == "Attribution of probability by occlusion"
    assert page.find_elements(By.TAG_NAME, "img") == []
    assert section(page, 3).find_element(By.CSS_SELECTOR, "h2").text.startswith(HOSTILE)


def test_headings_stay_while_a_wide_grid_scrolls(page):
    grid = section(page, 4).find_element(By.TAG_NAME, "table")
    page.execute_script("arguments[0].scrollIntoView()", grid)
    corners = [grid.find_element(By.CSS_SELECTOR, one) for one in ("tbody th", "thead th")]
    before = corners[0].rect["x"], corners[1].rect["y"]
    page.execute_script("arguments[0].parentElement.scrollTo(900, 500)", grid)
    assert page.execute_script("return arguments[0].parentElement.scrollLeft", grid) == 900
    assert (corners[0].rect["x"], corners[1].rect["y"]) == before


@pytest.mark.parametrize("key", [Keys.END, Keys.PAGE_DOWN])
def test_the_focused_cell_is_seen_beside_headings_and_readout(page, key):
    click(page, cells(page, 4)[0])
    press(page, key)
    press(page, *[Keys.ARROW_LEFT] * 20, *[Keys.ARROW_UP] * 20)
    cell = page.execute_script("return document.activeElement")
    x, y = page.execute_script(
        "const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]", cell
    )
    on_top = page.execute_script("return document.elementFromPoint(...arguments)", x, y)
    assert on_top == cell, on_top.get_attribute("outerHTML")[:200]


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(page, width):
    look(page, width=width)
    page.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_every_text_on_the_screen_is_readable(page, scheme, dark):
    look(page, scheme=scheme)
    page.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    click(page, cells(page, 0)[0])
    ground = page.execute_script(f"return {RGB}", page.find_element(By.TAG_NAME, "body"))
    assert (max(ground[:3]) < 60, min(ground[:3]) > 200) == (dark, not dark)
    lowest, texts = page.execute_script(LOWEST_CONTRAST)
    assert texts > 100
    assert lowest >= 4.5


def test_a_screen_reader_finds_grids_with_headings_and_cells(page):
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]]
    assert ("grid", "Score of each token for each attributed token") in named
    assert ("grid", "Token 3 “·in”: attn_out: score of each layer at each token") in named
    assert {("gridcell", "−2.00"), ("combobox", "Attributed token"), ("link", "The Eiffel → in in Paris")} <= set(named)
