"""The page of a fact as a reader uses it, in a real headless Chromium."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

import interpret
from interpret.factpages import FactSettings
from interpret.factpages.files import write_pages
from interpret.factpages.page import fact_page_html
from interpret.factpages.stored import stored_facts
from reference.browser import LOWEST_CONTRAST, assert_quiet, chromium, look

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
VIEWS = ("hidden", "attn_severed", "mlp_severed", "attribution", "lens")
SELECTED = """
return [...document.querySelectorAll('td[aria-selected="true"]')].map(cell => [cell.token, cell.layer, cell.tabIndex]);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    """The index and the pages of a run, by name."""
    folder = tmp_path_factory.mktemp("pages")
    write_pages(finished.folder, folder)
    return {path.stem: path for path in folder.rglob("*.html")}


@pytest.fixture
def page(browser, pages):
    """The page of the known fact, newly opened; no test may cause browser errors or network requests."""
    opened(browser, pages["known_0"])
    yield browser
    assert_quiet(browser, pages["known_0"])


def opened(browser, path, **how):
    look(browser, **how)
    browser.get("about:blank")
    for name in ("performance", "browser"):
        browser.get_log(name)
    browser.get(path.as_uri())


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def cell(browser, view, token, layer):
    script = "return grids.find(one => one.table.closest(arguments[0])).cells[arguments[1]][arguments[2]]"
    place = "#lens-frame" if view == "words" else f"#map-{view}"
    return browser.execute_script(script, place, token, layer)


def selected(browser):
    """The (token, layer) that all views have selected, each with one cell that Tab reaches."""
    found = {tuple(place) for place in browser.execute_script(SELECTED)}
    assert len(browser.execute_script(SELECTED)) == len(VIEWS) + 1
    ((token, layer, tab),) = found
    assert tab == 0
    return token, layer


@pytest.mark.parametrize("view", [*VIEWS, "words"])
def test_a_click_in_a_view_selects_the_cell_in_all_views(page, view):
    cell(page, view, 3, 2).click()
    assert selected(page) == (3, 2)
    assert one(page, "#here-title").text.startswith("Layer 2, token 3 ")
    assert [one(page, f"#{name}").get_property("value") for name in ("token", "layer")] == ["3", "2"]
    assert one(page, "#announcement").get_property("textContent").startswith("Layer 2, token 3 “")
    x = page.execute_script("const line = byId('marker'); return [Number(line.getAttribute('x1')), line.x(2)]")
    assert x[0] == pytest.approx(x[1])


def test_a_prompt_of_200_tokens_has_a_small_page_that_works(browser, model_folder_knowing, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder_knowing, folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    model, tokenizer = interpret.load(folder, device="cpu")
    words = "tower in " * 400
    start = next(n for n in range(len(words)) if len(tokenizer(f"{words[:n]}Rome is in").input_ids) == 200)
    quick = FactSettings(method="approximate", samples=1, cells=("last,0",))
    found = interpret.fact_page(
        model, tokenizer, f"{words[:start]}Rome is in", "Rome", "Paris", settings=quick, progress=False
    )
    assert not [name for name, part in found.details.items() if "missing" in part]
    rows = [found.cells[4 * token : 4 * token + 4] for token in range(200)]
    # As many layers as models of 7B parameters have.
    deep = [replace(of_token[layer % 4], layer_idx=layer) for of_token in rows for layer in range(32)]
    assert len(fact_page_html(deep, found.details, found.manifest).encode()) < 3_000_000
    path = tmp_path / "page.html"
    path.write_text(found.to_html(), encoding="utf-8")
    opened(browser, path)
    heading = browser.find_element(By.CSS_SELECTOR, "h1 .prompt").text
    assert heading.startswith("… ")
    assert heading.endswith("Rome is in")
    assert len(heading) < 130
    shown = "const [frame, cell] = [grids[0].frame, grids[0].cells[100][0]].map(one => one.getBoundingClientRect());"
    shown += "return (cell.top - frame.top) / frame.height"
    browser.execute_script("select(100, 0, grids[0].cells[0][0])")
    assert browser.execute_script(shown) == pytest.approx(0.5, abs=0.1)
    browser.execute_script("select(0, 0, grids[0].cells[0][0])")
    for keys, place in [(Keys.PAGE_DOWN, (199, 0)), (Keys.END, (199, 3)), (Keys.ARROW_UP, (198, 3))]:
        ActionChains(browser).send_keys(keys).perform()
        assert selected(browser) == place
    assert_quiet(browser, path)


def test_arrow_keys_move_the_selection_in_the_direction_of_each_view(page):
    cell(page, "hidden", 1, 1).click()
    for keys, place in [
        ([Keys.ARROW_DOWN], (2, 1)),
        ([Keys.ARROW_RIGHT], (2, 2)),
        ([Keys.HOME], (2, 0)),
        ([Keys.PAGE_DOWN], (4, 0)),
        ([Keys.ARROW_DOWN], (4, 0)),
        ([Keys.END], (4, 3)),
        ([Keys.ARROW_UP, Keys.ARROW_LEFT], (3, 2)),
    ]:
        ActionChains(page).send_keys(*keys).perform()
        assert selected(page) == place
    cell(page, "words", 1, 1).click()  # here, layers stand down and tokens across
    ActionChains(page).send_keys(Keys.ARROW_DOWN).perform()
    assert selected(page) == (1, 2)
    ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    assert selected(page) == (2, 2)


def test_buttons_tokens_and_lists_select_too(page):
    one(page, "#sentence .token:nth-child(4)").click()
    token, layer = selected(page)
    assert token == 3
    Select(one(page, "#layer")).select_by_value("3")
    assert selected(page) == (3, 3)
    button = one(page, "#units .go")
    button.send_keys(Keys.ENTER)
    assert selected(page) == tuple(int(button.get_dom_attribute(f"data-{name}")) for name in ("token", "layer"))
    assert one(page, "#units tr.here")


def test_the_selected_cell_has_its_interpretation_or_the_command_that_makes_it(page, finished):
    known, *_ = stored_facts(finished)
    (row,) = [row for row in known.details["interpretations"]["rows"] if (row["layer_idx"], row["token_idx"]) == (1, 2)]
    cell(page, "hidden", 2, 0).click()  # the output of layer 0 is the input of layer 1
    assert one(page, "#here-reading .text").get_property("textContent").strip() == row["interpretation_text"].strip()
    assert one(page, "#readings article.here")
    cell(page, "hidden", 0, 2).click()
    assert one(page, "#here-reading pre").text.endswith("--raw --layers 3 --tokens 0")


def test_the_csv_has_the_numbers_of_the_rows(page, finished):
    known, *_ = stored_facts(finished)
    page.execute_script("byId('csv').closest('details').open = true")
    one(page, "#every").click()
    rows = list(csv.DictReader(io.StringIO(one(page, "#csv").get_property("value"))))
    assert len(rows) == len(known.cells)
    for row, own in zip(rows, known.cells, strict=True):
        for name in ("hidden", "mlp_severed", "attribution", "lens_rank", "lens_probability"):
            assert float(row[name]) == pytest.approx(getattr(own, name), rel=1e-6)
        for name in ("token", "hidden_method", "lens_token"):
            assert row[name] == getattr(own, name)
    one(page, "#every").click()
    cell(page, "hidden", 3, 1).click()
    one(page, "#copy").click()
    assert len(one(page, "#csv").get_property("value").splitlines()) == 2
    assert page.execute_script("return byId('csv').selectionEnd - byId('csv').selectionStart") > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["known_0", "fact_1", "index"])
def test_pages_fit_and_are_readable(browser, pages, name, width, scheme):
    opened(browser, pages[name], width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    contrast, texts = browser.execute_script(LOWEST_CONTRAST)
    assert texts > 20
    assert contrast >= 4.5
    assert_quiet(browser, pages[name])


def test_on_a_phone_the_selected_cell_stands_below_the_maps(browser, pages):
    opened(browser, pages["known_0"], width=390)
    target = cell(browser, "attribution", 2, 1)
    browser.execute_script("arguments[0].scrollIntoView()", target)
    target.click()
    assert selected(browser) == (2, 1)
    here = one(browser, "#here").rect
    window = browser.execute_script("return [innerHeight, scrollY]")
    assert here["y"] - window[1] + here["height"] == pytest.approx(window[0], abs=1)
    assert here["height"] < window[0] / 2


def test_hostile_texts_run_nothing(browser, finished, tmp_path):
    _, foiled, _ = stored_facts(finished)
    bad = [
        replace(one, token=HOSTILE, lens_token=HOSTILE, answer=HOSTILE, prompt=HOSTILE, subject=HOSTILE)
        for one in foiled.cells
    ]
    details = json.loads(json.dumps(foiled.details))
    details["fact"] |= {"prompt": f"{HOSTILE} is", "subject": HOSTILE, "attribute": HOSTILE, "foil": HOSTILE}
    details["answer"]["continuation"] = HOSTILE
    for row in (*details["answer"]["next"], *details["interpretations"]["rows"]):
        row |= {"token": HOSTILE, "interpretation_text": HOSTILE}
    details["heads"] = {"missing": HOSTILE}
    details["knockout"] = {"missing": HOSTILE}
    path = tmp_path / "page.html"
    path.write_text(fact_page_html(bad, details, {"identity": {"model": HOSTILE}}), encoding="utf-8")
    opened(browser, path)
    cell(browser, "words", 1, 1).click()
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.title != "taken"
    assert browser.execute_script("return document.images.length") == 0
    assert_quiet(browser, path)


def test_two_hundred_tokens_make_a_page_below_three_megabytes(browser, finished, tmp_path):
    known, *_ = stored_facts(finished)
    first = known.cells[0]
    cells = [
        replace(first, token_idx=token, layer_idx=layer, in_subject=token == 1, lens_token=f" t{token * layer}")
        for token in range(200)
        for layer in range(40)
    ]
    details = json.loads(json.dumps(known.details))
    details["attribution"]["tokens"] = [0.1] * 200
    details["knockout"]["probability"] = [[0.1] * 40] * 3
    details["interpretations"]["rows"] = []
    path = tmp_path / "page.html"
    path.write_text(fact_page_html(cells, details, {}), encoding="utf-8")
    assert path.stat().st_size < 3e6
    opened(browser, path)
    cell(browser, "hidden", 150, 30).click()
    assert selected(browser) == (150, 30)
    assert_quiet(browser, path)


def test_the_index_sorts_its_facts_and_leads_to_their_pages(browser, pages):
    opened(browser, pages["index"])
    names = lambda: [link.text for link in browser.find_elements(By.CSS_SELECTOR, "#facts a")]  # noqa: E731
    before = names()
    one(browser, "#facts thead th:nth-child(3) button").click()
    cells = browser.find_elements(By.CSS_SELECTOR, "#facts td:nth-child(3)")
    rising = [float(one.get_dom_attribute("data-value")) for one in cells]
    assert rising == sorted(rising)
    one(browser, "#facts thead th:nth-child(3) button").click()
    assert sorted(names()) == sorted(before)
    assert names()[0] == before[0]  # the known fact has the largest probability
    one(browser, "#facts a").click()
    assert one(browser, "#here-title").text.startswith("Layer")
