"""Two ways to install, and neither may pass for the other: the patched 4.34.0, and a current transformers."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers

from interpret.surgery import selfcheck

TOP = Path(__file__).parents[1]
CURRENT = transformers.__version__ != "4.34.0"


def named(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def in_setup(keyword):
    """What setup.py gives under a keyword."""
    nodes = ast.walk(ast.parse((TOP / "setup.py").read_text()))
    (value,) = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == keyword]
    return ast.literal_eval(value)


def test_both_ways_want_the_same_of_all_packages_but_transformers_and_what_goes_with_it():
    lines = [line for line in (TOP / "requirements-current.txt").read_text().splitlines() if not line.startswith("#")]
    current, default = ({named(line): line for line in some} for some in (lines, in_setup("install_requires")))
    apart = {"transformers", "tokenizers", "huggingface-hub", "accelerate"}
    test = {named(line): line for line in in_setup("extras_require")["test"]}
    assert default.keys() - apart == current.keys() - apart - test.keys()
    assert all(current[name] == default.get(name, test.get(name)) for name in current.keys() - apart)
    assert {"transformers", "accelerate"} <= current.keys()


def test_the_check_says_which_way_is_active():
    said = selfcheck.patch_state()
    if CURRENT:
        assert said == f"not available for transformers {transformers.__version__}; use interpret.attach(model)"
    else:
        assert said in ("installed", "not installed; use interpret.attach(model)")


def test_the_patch_is_for_4_34_0_and_names_the_other_way():
    if not CURRENT:
        pytest.skip("tests/test_install_patch.py installs it")
    folder = Path(find_spec("transformers").origin).parent
    before = {path: path.read_bytes() for path in (folder / "models" / "llama").glob("*.py")}
    asked = [sys.executable, str(TOP / "install_patch.py"), "install"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the patch is for 4.34.0 only" in done.stdout + done.stderr
    assert "interpret.attach(model)" in done.stdout + done.stderr
    assert {path: path.read_bytes() for path in before} == before
