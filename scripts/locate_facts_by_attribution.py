"""Locate facts in a model by contrastive attribution and write a CSV; the same as ``interpret locate``.

python scripts/locate_facts_by_attribution.py --facts examples/facts.json
"""

import sys

from interpret.cli import main

if __name__ == "__main__":
    main(["locate", *sys.argv[1:]])
