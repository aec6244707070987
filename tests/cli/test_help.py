"""Help loads no model library, so that it is there at once."""

import subprocess
import sys

import pytest

from interpret.cli import COMMANDS, PROBES

LINES = ["", "probe", *COMMANDS, *(f"probe {name}" for name in PROBES)]
HEAVY = ("torch", "transformers", "numpy", "pandas", "matplotlib")
# One process for all: what a command line imports stays imported for the next ones.
CODE = f"""
import sys
from interpret.cli import main
for line in {LINES!r}:
    try:
        main([*line.split(), "--help"])
    except SystemExit as exit_:
        assert not exit_.code, line
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, (line, heavy)
"""


def test_help_imports_no_model_library():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: ") == len(LINES)


@pytest.mark.parametrize("line", ["", "trace"])
def test_a_command_line_by_itself_imports_none_for_help(line):
    code = f"import sys; sys.argv = ['interpret', *{line.split()!r}, '--help']\n"
    code += "import atexit, runpy\n"
    code += f"atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))\n"
    code += "runpy.run_module('interpret', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
