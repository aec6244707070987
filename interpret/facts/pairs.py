"""Files of true and false texts, pair by pair.

Either JSON of pairs, ``{"pairs": [{"true": "Paris is in France.", "false": "Paris is in Peru."}]}``, or a file of
facts with foils (``fact_files``): a prompt with its answer is true, with its foil false. Keys we do not know are the
user's own notes.
"""

from pathlib import Path

from interpret.errors import InputError
from interpret.facts.files import load_facts
from interpret.prompts.prompts import read_json

SIDES = ("true", "false")


def load_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read a file of pairs, in its order.

    Raises:
        InputError: if the file is missing, is not JSON, or an entry is wrong; the message names it.
    """
    document = read_json(path, like="examples/pairs.json")
    entries = document.get("pairs") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f'{path} has no pairs; expected {{"pairs": [{{"true": "...", "false": "..."}}, ...]}}')
    return [_pair(entry, f"{path}: pairs[{index}]") for index, entry in enumerate(entries)]


def _pair(entry: object, where: str) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected an object with "true" and "false", got {entry!r}')
    for side in SIDES:
        text = entry.get(side)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{where}: "{side}" is {text!r}; expected a text')
    if entry["true"] == entry["false"]:
        raise InputError(f"{where}: both texts are {entry['true']!r}; there is nothing to tell apart")
    return entry["true"], entry["false"]


def pairs_of_facts(path: str | Path) -> tuple[list[tuple[str, str]], int]:
    """Make pairs of the facts of a file that have foils.

    Returns:
        The pairs, and how many rows of the file are none: those without a foil, and wrong ones.

    Raises:
        InputError: if the file is missing or holds no facts, or none of them has a foil.
    """
    file = load_facts(path)
    pairs = [
        (_said(fact.prompt, fact.attribute), _said(fact.prompt, fact.foil))
        for fact in file.facts
        if fact.foil is not None
    ]
    if not pairs:
        raise InputError(f'{path}: none of its facts has a "foil", the wrong answer a false text is made of')
    return pairs, len(file.facts) + len(file.bad) - len(pairs)


def _said(prompt: str, answer: str) -> str:
    return prompt + ("" if prompt[-1].isspace() else " ") + answer
