"""What a run is given: prompts, from a file or as they are, and options written as ``name=value``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.errors import InputError
from interpret.prompts.prompts import Prompt, load_examples
from interpret.storage.provenance import file_sha256, objects_sha256


@dataclass(frozen=True)
class PromptList:
    """The prompts of a run."""

    prompts: list[Prompt]
    sha256: str
    """Of their file's bytes, or of prompts that no file holds."""
    path: str | None = None
    """Of the file; None for prompts that no file holds."""


def prompt_list(examples: Path | str | Sequence[Prompt]) -> PromptList:
    """Return the prompts of a file, or prompts as they are given, and their hash.

    Args:
        examples: a file as examples/examples.json, or prompts, each with a name of its own.

    Raises:
        InputError: if the file is missing, is not JSON, or an entry is wrong; or if there are no prompts.
    """
    if isinstance(examples, (str, Path)):
        return PromptList(load_examples(examples), file_sha256(examples), str(examples))
    for index, one in enumerate(examples):
        if not isinstance(one, Prompt):
            raise InputError(f"examples[{index}] is {one!r}; make it a Prompt(name, text)")
    if not examples:
        raise InputError("examples is empty; give a file, or at least one Prompt")
    return PromptList(list(examples), objects_sha256(examples))


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Read 'n_steps=20': what is JSON is taken as such, the rest as text.

    Raises:
        InputError: if one has no value.

    >>> read_options(["n_steps=20", "baseline=mean"])
    {'n_steps': 20, 'baseline': 'mean'}
    """
    found = {}
    for option in words:
        name, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"option {option!r} has no value; write it as name=value, such as n_steps=20")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value
    return found
