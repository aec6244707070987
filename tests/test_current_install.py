"""Two ways to install, and neither may pass for the other: the patched 4.34.0, and a current transformers."""

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


def test_every_environment_of_the_makefile_has_the_versions_they_have_in_common():
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    assert re.findall("pip install.*", makefile) == [
        "pip install --quiet --constraint $(or $(CONSTRAINTS),constraints.txt)"
    ], "the one line that all others use"
    pinned = [line for line in (TOP / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert pinned == ["torch==2.13.0"]


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
