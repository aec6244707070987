"""Helpers of the tests: tiny models, plain reference implementations, and commands in processes.

The variables with which a user sets up a terminal are removed here, before anything reads them, also from the
environment of processes that tests start: they would change the width and the colours of what commands print.
"""

import os

for _name in ("CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "PYTHONWARNINGS", "TERM"):
    os.environ.pop(_name, None)
