"""Read the inputs of a run: prompts from a file or a list, and options written as ``name=value``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief
from interpret.prompts.prompts import Prompt, load_examples
from interpret.reading import parse_json
from interpret.storage.provenance import file_sha256, objects_sha256


@dataclass(frozen=True)
class PromptList:
    """The prompts of a run."""

    prompts: list[Prompt]
    sha256: str
    """Hash of the file's bytes, or of the prompts if they were not read from a file."""
    path: str | None = None
    """Path of the file; None if the prompts were not read from a file."""


def prompt_list(examples: Path | str | Sequence[Prompt]) -> PromptList:
    """Return prompts and their hash; read the prompts if a path is given.

    Args:
        examples: path of a prompt file such as examples/examples.json, or prompts with unique names.

    Raises:
        InputError: if the file is missing or is not JSON, an entry is invalid, or there are no prompts.
    """
    if isinstance(examples, (str, Path)):
        return PromptList(load_examples(examples), file_sha256(examples), str(examples))
    for index, one in enumerate(examples):
        if not isinstance(one, Prompt):
            raise InputError(f"examples[{index}] is {brief(one)}; expected a Prompt(name, text)")
    if not examples:
        raise InputError("examples is empty; give a file, or at least one Prompt")
    return PromptList(list(examples), objects_sha256(examples))


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Parse options such as ``n_steps=20``; a value that is not valid JSON is kept as text.

    Raises:
        InputError: if an option has no value.

    >>> read_options(["n_steps=20", "baseline=mean"])
    {'n_steps': 20, 'baseline': 'mean'}
    """
    found = {}
    for option in words:
        name, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"option {brief(option)} has no value; write it as name=value, such as n_steps=20")
        try:
            found[name.strip()] = parse_json(value)
        except InputError:
            found[name.strip()] = value
    return found
