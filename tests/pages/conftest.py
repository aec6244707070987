"""The browser, and a page of interpretations in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from interpret.pages.interpretations import interpretation_page
from reference.browser import assert_quiet, chromium
from reference.interpretation_page import MANIFEST, RECORDS, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "page.html"
    path.write_text(interpretation_page(RECORDS, MANIFEST), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    """A newly opened page, wide and light; no test may cause browser errors or network requests."""
    page = Page(browser, file).opened()
    yield page
    assert_quiet(browser, page.file)
