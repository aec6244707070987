"""A command imports matplotlib, a second or more, only when it draws a figure."""

import subprocess
import sys

import pytest

ANALYSES = ("attribution", "factpages", "locating", "selfie", "tracing")
CODE = """
import importlib, sys
importlib.import_module("interpret.{}.runs")
print("matplotlib" in sys.modules)
import interpret.drawing
interpret.drawing.styled()
print("matplotlib" in sys.modules)
"""


@pytest.mark.parametrize("analysis", ANALYSES)
def test_an_analysis_imports_matplotlib_only_to_draw(analysis):
    done = subprocess.run([sys.executable, "-c", CODE.format(analysis)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
