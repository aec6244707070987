"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import interpret
from reference.house import IMPORT_RAY

MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(interpret.__path__, "interpret.")
    if not found.name.endswith("__main__")
)
PARSER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", MODULES)
def test_every_example_in_a_docstring_runs(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    if name in IMPORT_RAY:
        pytest.importorskip("ray")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_are_found():
    names = set(MODULES) - IMPORT_RAY
    assert sum(bool(test.examples) for name in names for test in PARSER.find(importlib.import_module(name))) > 40
