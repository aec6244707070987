"""Memory of freed tensors is used again, which the page faults of a fresh process show."""

import platform
import subprocess
import sys

import pytest

TENSOR = 2**20  # float32 numbers: 4 MiB
TENSORS = 6  # together more than glibc keeps by itself, which is twice the size of one of them
ROUNDS = 20
PROGRAM = f"""
import resource
import torch
from interpret.device import reuse_freed_memory

reuse_freed_memory()
def work():
    several = [torch.ones({TENSOR}) for _ in range({TENSORS})]

for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such limit")
def test_new_tensors_take_the_memory_of_freed_ones():
    round_of_pages = TENSORS * 4 * TENSOR // 4096
    output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert int(output.stdout) < round_of_pages  # without the call about ROUNDS times as many, as a rule
