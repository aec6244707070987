"""Measure what the comparison with the model's own logits adds to the smallest command, on the demo model.

python -m benchmarks.bench_check

`interpret attribute` for one token after a prompt is the smallest command that makes the comparison. Each run is a
process of its own, because the comparison is made once per model and because its pass reads the weights for the first
time, which the next pass would do without it. Runs with the comparison and without it alternate.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, stdev

TARGET = 0.02

PROGRAM = """
from time import perf_counter
start = perf_counter()
import sys
from interpret.anatomy import agreement
if {without}:
    agreement._compared = lambda model, made_of: agreement._Agreement(made_of, None)
from interpret.cli import main
try:
    main(["attribute", "--prompt", "The capital of France is", "--new-tokens", "1", "--quiet", "--output", {folder!r}])
finally:
    print(perf_counter() - start)
"""


def seconds(without: bool) -> float:
    """Return the time of one command in a new process, with or without the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        program = PROGRAM.format(without=without, folder=str(Path(folder) / "run"))
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(said.stdout.split()[-1])


def main() -> None:
    """Print the medians, and the median of the differences between neighbouring runs as a share of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, help="pairs of runs")
    asked = parser.parse_args()
    seconds(without=False)  # reads the files from the disk
    with_: list[float] = []
    without: list[float] = []
    for turn in range(asked.runs):
        for kind, times in [(False, with_), (True, without)][:: -1 if turn % 2 else 1]:
            times.append(seconds(kind))
    added = [one - other for one, other in zip(with_, without, strict=True)]
    share, error = median(added) / median(without), 1.25 * stdev(added) / len(added) ** 0.5 / median(without)
    print(f"with the comparison {median(with_):.2f} s, without {median(without):.2f} s;", end=" ")
    print(f"it adds {share:.1%} +- {error:.1%} (standard error), target at most {TARGET:.0%}")


if __name__ == "__main__":
    main()
