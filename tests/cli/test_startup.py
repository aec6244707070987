"""A command imports matplotlib, a second or more, only when it draws a figure."""

import subprocess
import sys

ANALYSES = ("attribution", "factpages", "locating", "selfie", "tracing")
CODE = f"""
import importlib, sys
for analysis in {ANALYSES!r}:
    importlib.import_module(f"interpret.{{analysis}}.runs")
    assert "matplotlib" not in sys.modules, analysis
import interpret.drawing
interpret.drawing.styled()
assert "matplotlib" in sys.modules
"""


def test_analyses_import_matplotlib_only_to_draw():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
