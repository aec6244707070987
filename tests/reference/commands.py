"""Commands run as a user runs them, on a tiny model in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.tiny import resize_vocabulary, tiny_model
from reference.toy_tokenizers import byte_level

from interpret import cli


def saved_model(folder: Path, kind: str = "llama") -> Path:
    """Write a tiny model with a chat tokenizer into a folder."""
    model = tiny_model(kind)
    torch.manual_seed(0)
    resize_vocabulary(model, 420)
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    byte_level(chat=True).save_pretrained(folder)
    return folder


def run(*argv: object) -> int:
    """Run a command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in argv])
    return int(exit_.value.code or 0)


def json_file(path: Path, document: Any) -> Path:
    """Write a JSON file."""
    path.write_text(json.dumps(document))
    return path
