"""The pages of all results in a real headless Chromium: wide and narrow, light and dark."""

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from reference.attributions import made, made_one
from reference.browser import LOWEST_CONTRAST, assert_quiet, chromium, look
from reference.results import RESULTS


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def opened(browser, result, folder):
    path = folder / "page.html"
    path.write_text("".join(result._pieces()), encoding="utf-8")
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(path.as_uri())
    return path


@pytest.mark.parametrize("name", RESULTS)
def test_every_page_fits_the_screen_and_is_readable(browser, name, tmp_path):
    look(browser)
    path = opened(browser, RESULTS[name], tmp_path)
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            look(browser, width=width, scheme=scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            lowest, texts = browser.execute_script(LOWEST_CONTRAST)
            assert texts > 3
            assert lowest >= 4.5, (width, scheme)
    assert "taken" not in browser.title
    assert_quiet(browser, path)


def test_the_text_is_coloured_by_the_scores_for_the_chosen_token(browser, tmp_path):
    look(browser)
    opened(browser, made(made_one(("The", " Tower", " is", " in", " Paris"), 3)), tmp_path)
    pieces = browser.find_elements(By.CSS_SELECTOR, ".sentence span")
    column = lambda n: [  # noqa: E731
        row.find_elements(By.TAG_NAME, "td")[n].get_attribute("class").replace("missing", "")
        for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]
    shades = lambda: [  # noqa: E731
        " ".join(set(one.get_attribute("class").split()) - {"target", "chosen"}) for one in pieces
    ]
    assert [one.get_attribute("textContent") for one in pieces] == ["The", " Tower", " is", " in", " Paris"]
    assert shades() == [*column(0), ""]
    pieces[4].click()
    assert shades() == [*column(1), ""]
    back = ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT)
    back.send_keys(Keys.ENTER).perform()
    assert shades() == [*column(0), ""]


def test_what_a_notebook_displays_works_in_its_closed_frame(browser, tmp_path):
    look(browser)
    path = tmp_path / "notebook.html"
    path.write_text(f"<body>{RESULTS['interpretations']._repr_html_()}</body>", encoding="utf-8")
    browser.get(path.as_uri())
    browser.switch_to.frame(0)
    browser.find_element(By.CSS_SELECTOR, "#grid td").click()
    assert browser.find_element(By.ID, "dock").is_displayed()
    assert browser.execute_script("try { return parent.document.title } catch (error) { return error.name }") == (
        "SecurityError"
    )
    assert browser.get_log("browser") == []
