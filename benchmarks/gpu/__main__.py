"""Run the tests with a case on a GPU, the exactness cases and the benchmarks, and write gpu.json and gpu.md.

python -m benchmarks.gpu --to runs/gpu

On a machine without a GPU, the models are small. The exit code is 1 if a test fails or a result is not exact.
"""

import argparse
import gc
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from traceback import format_exception
from typing import Any

import torch

from benchmarks.gpu.cases import EXACT, SPEED
from benchmarks.gpu.comparing import Bench, exact_row, speed_row
from benchmarks.gpu.measuring import matrix_rate, on_gpu
from benchmarks.gpu.shapes import LARGE, SMALL, made, word_tokenizer
from benchmarks.gpu.table import FailedRow, Report, Row
from benchmarks.gpu.tests import marked_files, run_tests
from interpret.device import is_out_of_memory

DTYPES = (torch.float32, torch.bfloat16)
SECONDS = 8 * 60 - 20
"""After this time nothing more is started."""
SECONDS_OF_TESTS = 200


def machine(device: torch.device) -> dict[str, Any]:
    """Return what describes the machine and its software."""
    found = {"device": torch.cuda.get_device_name(device) if on_gpu(device) else platform.processor() or "CPU"}
    found |= {"python": platform.python_version()}
    return found | {name: version(name) for name in ("torch", "transformers", "accelerate")}


def benches(device: torch.device, report: Report) -> Iterator[Bench]:
    """Yield each model in each dtype, one after the other; the one before is freed."""
    rates = {dtype: matrix_rate(dtype, device) for dtype in DTYPES}
    report.machine |= {f"{str(dtype).removeprefix('torch.')} rate": f"{rate:.3g} /s" for dtype, rate in rates.items()}
    for shape in LARGE if on_gpu(device) else SMALL:
        for dtype in DTYPES:
            yield Bench(shape, made(shape, dtype, device), word_tokenizer(shape.vocabulary), rates[dtype])
            gc.collect()
            if on_gpu(device):
                torch.cuda.empty_cache()


def attempted(name: str, bench: Bench, make: Callable[[], Row], deadline: float) -> Row:
    """Return the row of a case, or one that says why it has none: an error of one case must not end the run."""
    failed = partial(FailedRow, name, bench.shape.name, bench.dtype)
    if perf_counter() > deadline:
        return failed("out of time", passed=True)
    try:
        return make()
    except Exception as error:  # noqa: BLE001
        if is_out_of_memory(error):
            return failed("does not fit in memory", passed=True)
        return failed("".join(format_exception(error)[-3:]))


def main() -> int:
    """Run everything, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("runs/gpu"), help="the folder of gpu.json and gpu.md")
    asked = parser.parse_args()
    start = perf_counter()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report = Report(asked.to, machine(device))
    for tests in run_tests(marked_files(), SECONDS_OF_TESTS):
        report.add("tests", tests)
    for bench in benches(device, report):
        for name, exact in EXACT.items():
            row = attempted(name, bench, partial(exact_row, name, bench, exact), start + SECONDS)
            report.add("exactness", row)
        bench = replace(bench)  # without the copy in float32
        for name, speed in SPEED.items():
            report.add("speed", attempted(name, bench, partial(speed_row, name, bench, speed), start + SECONDS))
    report.machine["seconds"] = f"{perf_counter() - start:.0f}"
    report.write()
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
