"""Nothing takes for granted where a model is: every public call, on a device that is not the CPU, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def test_every_call_does_elsewhere_what_it_does_on_the_cpu():
    # A process of its own: once torch has the device, it has it for good.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "each_call.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
