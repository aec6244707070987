"""Read the inputs of a run: prompts from a file or a list, and options written as ``name=value``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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


Examples = Path | str | Sequence[Prompt] | Iterable[Mapping[str, Any]]
"""Prompts as the run functions take them, see ``prompt_list``."""


def prompt_list(examples: Examples, *, raw: bool | None = None) -> PromptList:
    """Return prompts and their hash; read the prompts if they are not ``Prompt`` objects.

    Args:
        examples: path of a prompt file such as examples/examples.json; prompts with unique names; or what
            ``load_examples`` reads: a list of dicts or a Hugging Face data set.
        raw: as in ``load_examples``.

    Raises:
        InputError: if the file is missing or is not JSON, an entry is invalid, or there are no prompts.
    """
    if isinstance(examples, (str, Path)):
        return PromptList(load_examples(examples, raw=raw), file_sha256(examples), str(examples))
    if not isinstance(examples, Sequence) or not any(isinstance(one, Prompt) for one in examples):
        prompts = load_examples(cast(Iterable[Mapping[str, Any]], examples), raw=raw)
        return PromptList(prompts, objects_sha256(prompts))
    for index, one in enumerate(examples):
        if not isinstance(one, Prompt):
            raise InputError(f"examples[{index}] is {brief(one)}; expected a Prompt(name, text)")
    listed = cast(Sequence[Prompt], examples)
    return PromptList(list(listed), objects_sha256(listed))


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
