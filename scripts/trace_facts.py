"""Trace where a model stores the facts of a file, and write a CSV and grids; the same as ``interpret trace``.

python scripts/trace_facts.py --facts examples/facts.json
"""

import sys

from interpret.cli import main

if __name__ == "__main__":
    main(["trace", *sys.argv[1:]])
