"""A headless Chromium for the browser tests of the HTML pages, and measurements in it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "NO BROWSER: the HTML pages are not tested. Install one: apt-get install chromium chromium-driver"
RGB = "[...getComputedStyle(arguments[0]).backgroundColor.matchAll(/[\\d.]+/g)].map(Number)"
"""JavaScript: red, green, blue and, if it is not 1, alpha of an element's background colour."""


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Open a browser; skip the test with a message if there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (found and driver):
        pytest.skip(MISSING)
    options = ChromeOptions()
    options.binary_location = found
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # the sandbox does not work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(driver)) as chrome:
        yield chrome


def look(browser: Chrome, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
    """Set the size of the window and the preferred colour scheme, light or dark."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def assert_quiet(browser: Chrome, file: Path) -> None:
    """Assert that a page logged no errors and requested nothing but its own file."""
    assert browser.get_log("browser") == []
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in requests if one["method"] == "Network.requestWillBeSent"]
    assert asked, "the log contains no requests, not even that of the page"
    assert {url.split("#")[0] for url in asked} <= {file.as_uri(), "data:,"}


LOWEST_CONTRAST = """
const parts = text => [...text.matchAll(/[\\d.]+/g)].map(Number);
const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]); };
const white = [255, 255, 255];
const ground = one => one ? over(parts(getComputedStyle(one).backgroundColor), ground(one.parentElement)) : white;
const linear = part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const light = colour => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(colour[i]), 0);
const ratio = one => {
  const [a, b] = [parts(getComputedStyle(one).color), ground(one)].map(light).sort((x, y) => x - y);
  return (b + 0.05) / (a + 0.05);
};
const hasText = one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
const shown = [...document.querySelectorAll("body :not(option)")].filter(one => one.offsetParent);
const texts = shown.filter(hasText);
return [Math.min(...texts.map(ratio)), texts.length];
"""
"""JavaScript: the lowest contrast ratio between a text and its background, and the number of texts."""
