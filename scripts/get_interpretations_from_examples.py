"""Interpret the hidden states of the prompts in a JSON file and write a CSV; the same as ``interpret selfie``.

python scripts/get_interpretations_from_examples.py --examples examples/examples.json
"""

import sys

from interpret.cli import main

if __name__ == "__main__":
    main(["selfie", *sys.argv[1:]])
