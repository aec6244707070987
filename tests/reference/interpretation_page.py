"""The page of a run of interpretations with every kind of row, and what its reader does in a browser."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from interpret.records import Interpretation
from reference.browser import look
from reference.interpretation_records import TOKENS, made

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
"""A text that would take the page over if it were not shown as text."""


def text_of(prompt: str, template: str, layer: int, token: int) -> str:
    """Return a text unique to its cell, long enough to be truncated in it."""
    return f" {prompt} by {template}: layer {layer} says of token {token} more than fits into a cell," + " again" * 30


def rows(prompt: str, template: str, layers: Iterable[int], **values: Any) -> Iterator[Interpretation]:
    """Yield the rows of a prompt: a control, then for each layer a wrong state and the texts of its tokens."""
    shared: dict[str, Any] = {"name": prompt, "repeat_prompt_name": template, **values}
    tokens = range(len(values.get("prompt_token_list", TOKENS)))
    yield made([f" the control of {prompt}", " by", f" {template}"], **shared)
    for layer in layers:
        yield made([" wrong", f" vector in {layer}"], kind="wrong_vector", layer_idx=layer, token_idx=0, **shared)
        for token in tokens:
            pieces = text_of(prompt, template, layer, token).split("says")
            signed = [0.4, -0.1 * token]
            yield made(
                [pieces[0] + "says", pieces[1]], layer_idx=layer, token_idx=token, signed_relevancy=signed, **shared
            )


RECORDS = [
    *rows("fact_1", "summarize", (0, 5, 10)),
    *rows("fact_1", "about", (0, 5, 10)),
    *rows("odd_1", "summarize", (0, 7), prompt_token_list=[HOSTILE, "שלום"], prompt_output=HOSTILE),
    *rows("wide_1", "summarize", range(20), prompt_token_list=[f" t{n}" for n in range(25)]),
    made(
        [],
        name="odd_1",
        layer_idx=3,
        token_idx=0,
        prompt_token_list=[HOSTILE, "שלום"],
        prompt_output=HOSTILE,
    ),
    made(
        ["\n", "\n"],
        name="odd_1",
        layer_idx=3,
        token_idx=1,
        prompt_token_list=[HOSTILE, "שלום"],
        prompt_output=HOSTILE,
    ),
]
MANIFEST = {"identity": {"model": "demo", "layers": "::5"}, "circumstances": {"versions": {"torch": "2.4.0"}}}


class Page:
    """The page, with methods for what a reader does."""

    def __init__(self, browser: Chrome, file: Path) -> None:
        self.browser, self.file = browser, file

    def opened(self, address: str = "", *, file: Path | None = None, **look: Any) -> "Page":
        """Open it anew, at an address within it."""
        self.file = file or self.file
        self.look(**look)
        self.browser.get("about:blank")  # otherwise a new fragment would not reload the page
        self.browser.get_log("performance")
        self.browser.get(f"{self.file.as_uri()}#{address}")
        return self

    def look(self, **wanted: Any) -> None:
        """Set the size of the window and the scheme of colours."""
        look(self.browser, **wanted)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns."""
        return self.browser.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        """Return all elements that a selector finds."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Return the first element that a selector finds."""
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def cell(self, layer: int, token: int) -> WebElement:
        """Return a cell of the grid."""
        return self.one(f'td[data-layer="{layer}"][data-token="{token}"]')

    def press(self, *keys: str) -> None:
        """Press keys, one after another."""
        ActionChains(self.browser).send_keys(*keys).perform()

    def focus(self) -> Any:
        """Return (layer, token) of the cell that has the focus, or the id of another element."""
        layer, token, name = self.run(
            "const at = document.activeElement; return [at.dataset.layer, at.dataset.token, at.id]"
        )
        return name if layer is None else (int(layer), int(token))

    def to_grid(self) -> None:
        """Press the tab key until a cell has the focus."""
        for _ in range(60):
            self.press(Keys.TAB)
            if self.run("return document.activeElement.matches('td')"):
                return
        pytest.fail("Tab never reaches the grid")

    def choose(self, name: str, text: str) -> None:
        """Choose what a menu offers."""
        Select(self.one(f"#{name}")).select_by_visible_text(text)

    def read(self) -> dict[str, str] | None:
        """Return heading and text of each card of the open dock, or None."""
        if not self.one("#dock").is_displayed():
            return None
        return {
            one.find_element(By.TAG_NAME, "h3").text: self.run(
                "return arguments[0].querySelector('.reading').textContent", one
            )
            for one in self.all(".card")
        }

    def grid(self) -> tuple[list[str], list[str]]:
        """Return the headings: layers down, and tokens across."""
        layers, tokens = (self.all(f"#grid {selector}") for selector in ("tbody th", "thead .piece"))
        return [one.text for one in layers], [one.text for one in tokens]
