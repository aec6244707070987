"""An extension for tests of workers: a probe whose prompts wait, raise an error or kill their worker, by their names.

A worker that loads this file waits while there is a file ``hold`` beside it.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from interpret.probing import Probe, register_probe

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Gated:
    """A row: the name of a prompt and its number of tokens."""

    name: str
    n_tokens: int


def wait_for(files, there):
    """Wait until one of some files is there, or is not."""
    while any(file.exists() for file in files) != there:
        time.sleep(0.02)


def gate(model, tokenizer, *, folder: str = ""):
    """Return the reader; ``folder`` is where prompts say that they were started, and wait for cues."""
    return partial(read, Path(folder))


def read(folder, asked):
    """Return the row of a prompt, or do what its category says."""
    (folder / f"started {asked.name} {os.getpid()}").touch()
    category = asked.name.rpartition("_")[0]
    if category == "wait":
        wait_for([folder / "go", folder / f"go {asked.name}"], True)
    elif category == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif category == "raise":
        raise KeyError("on cue")
    elif category == "memory":
        raise MemoryError
    return [Gated(asked.name, len(asked.tokens.ids))]


register_probe(Probe("gate", "Wait for a file.", Gated, gate, at_tokens=False))
if sys.argv[0].endswith("default_worker.py"):
    (HERE / f"loading {os.getpid()}").touch()
    wait_for([HERE / "hold"], False)
