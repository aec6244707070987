"""Commands run as a user runs them, on a tiny model in a folder, and killed as a machine kills them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.tiny import resize_vocabulary, tiny_model
from reference.toy_tokenizers import byte_level

from interpret import cli
from interpret.runs import PROGRESS

FACT_PROMPTS = [
    ("The Eiffel Tower is in", "Eiffel Tower"),
    ("I love eating pizza with extra", "pizza"),
    ("Sure, I will summarize the message", "summarize"),
    ("Anna's apples, Anna's", "apples"),
]
"""Prompts and their subjects."""


def saved_model(folder: Path, kind: str = "llama") -> Path:
    """Write a tiny model with a chat tokenizer into a folder."""
    model = tiny_model(kind)
    torch.manual_seed(0)
    resize_vocabulary(model, 420)
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    byte_level(chat=True).save_pretrained(folder)
    return folder


def fact_rows(count: int = 4, **changes: Any) -> list[dict[str, Any]]:
    """Rows of a fact file; what the model says to them is not asked."""
    return [
        {"known_id": n, "subject": subject, "attribute": "Paris", "prompt": prompt} | changes
        for n, (prompt, subject) in enumerate((FACT_PROMPTS * count)[:count])
    ]


def json_file(path: Path, document: Any) -> Path:
    """Write a JSON file."""
    path.write_text(json.dumps(document))
    return path


def run(*argv: object) -> int:
    """Run a command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in argv])
    return int(exit_.value.code or 0)


def run_killed(command: Sequence[object], folder: Path, *, units: int) -> int:
    """Run a script or module in a process of its own, and kill it when three units of its run are safe.

    Args:
        command: what Python is given.
        folder: the folder of the run, which has ``units`` units.

    Returns:
        How many units were safe when it died, fewer than all.
    """
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *map(str, command)], **silent)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and _safe_units(folder) < 3:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert 3 <= _safe_units(folder) < units
    return _safe_units(folder)


def _safe_units(folder: Path) -> int:
    """Count the units whose line stands in the journal."""
    journal = folder / PROGRESS
    return journal.read_bytes().count(b"\n") if journal.exists() else 0
