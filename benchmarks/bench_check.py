"""Measure what the comparison with the model's own logits adds to the smallest command, on the demo model.

python -m benchmarks.bench_check

`interpret attribute` for one token after a prompt is the smallest command that makes the comparison. The comparison is
made once per model, and its pass reads the weights for the first time, which the next pass would do without it. So what
it adds is the difference between the first attribution of a process with the comparison and of one without it. Both
kinds of processes alternate; the time of the whole command is measured in others. The fastest run of each kind counts:
whatever else the machine does only makes a run slower.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

TARGET = 0.02
PROMPT = "The capital of France is"

FIRST_CALL = """
from time import perf_counter
import interpret
from interpret.anatomy import agreement
if {without}:
    agreement._compared = lambda model, made_of: agreement._Agreement(made_of, None)
model, tokenizer = interpret.load("demo", device="cpu")
start = perf_counter()
interpret.attribute(model, tokenizer, {prompt!r}, max_new_tokens=1, progress=False)
print(perf_counter() - start)
"""

COMMAND = """
from time import perf_counter
start = perf_counter()
from interpret.cli import main
try:
    main(["attribute", "--prompt", {prompt!r}, "--new-tokens", "1", "--quiet", "--output", {folder!r}])
finally:
    print(perf_counter() - start)
"""


def printed(program: str) -> float:
    """Return the number that a program prints last, run in a new process."""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(said.stdout.split()[-1])


def first_call(without: bool) -> float:
    """Return the seconds of the first attribution of a process, with or without the comparison."""
    return printed(FIRST_CALL.format(without=without, prompt=PROMPT))


def command() -> float:
    """Return the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        return printed(COMMAND.format(prompt=PROMPT, folder=str(Path(folder) / "run")))


def main() -> None:
    """Print what the comparison adds, in seconds and as a share of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, help="pairs of runs")
    asked = parser.parse_args()
    command()  # reads the files from the disk
    whole = min(command() for _ in range(asked.runs // 3 + 1))
    kinds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(asked.runs):
        for without in (False, True)[:: -1 if turn % 2 else 1]:
            kinds[without].append(first_call(without))
    for without, times in kinds.items():
        middle = f"median {median(times):.3f}, fastest {min(times):.3f} s"
        print(f"first attribution {'without' if without else 'with'} the comparison: {middle}")
    added = min(kinds[False]) - min(kinds[True])
    print(f"the comparison adds {1000 * added:.0f} ms to a command of {whole:.2f} s (fastest runs),", end=" ")
    print(f"{added / whole:.1%} of it; target: less than {TARGET:.0%}")


if __name__ == "__main__":
    main()
