"""Run commands as a user does, on a tiny model in a folder, or kill them in the middle of a run."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from interpret import cli, load
from reference.tiny import resize_vocabulary, tiny_model
from reference.toy_tokenizers import byte_level

FACT_PROMPTS = [
    ("The Eiffel Tower is in", "Eiffel Tower"),
    ("I love eating pizza with extra", "pizza"),
    ("Sure, I will summarize the message", "summarize"),
    ("Anna's apples, Anna's", "apples"),
]
"""Prompts and their subjects."""


def saved_model(folder: Path, kind: str = "llama") -> Path:
    """Save a tiny model and a tokenizer with a chat template in a folder."""
    model = tiny_model(kind)
    torch.manual_seed(0)
    resize_vocabulary(model, 420)
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    byte_level(chat=True).save_pretrained(folder)
    return folder


def answering(folder: Path, prompt: str, answer: str) -> Path:
    """Let a saved model continue a prompt with an answer of one token, and save it again."""
    model, tokenizer = load(folder, device="cpu")
    (wanted,) = tokenizer(answer, add_special_tokens=False).input_ids
    with torch.no_grad():
        said = int(model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1].argmax())
        weight = model.get_output_embeddings().weight
        weight[[said, wanted]] = weight[[wanted, said]]
    model.save_pretrained(folder)
    return folder


def fact_rows(count: int = 4, **changes: Any) -> list[dict[str, Any]]:
    """Rows of a fact file; the attributes are not what the tiny model answers."""
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


# Stops and waits when the fourth unit is about to be written.
_STOPPING = """
import runpy, sys, time
from interpret.storage.run import Run
take, safe = Run.take, []
def take_three(run, ready):
    if len(safe) == 3:
        print("three are safe", flush=True)
        time.sleep(600)
    take(run, ready)
    safe.extend(ready)
Run.take = take_three
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_killed(script: Path, *argv: object) -> None:
    """Run a script in a separate process; kill it when three units are on disk and the fourth is computed."""
    command = [sys.executable, "-c", _STOPPING, script, *argv]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = process.stdout.read(len("three are safe"))
        process.kill()
    assert said == b"three are safe"
    assert process.returncode == -signal.SIGKILL
