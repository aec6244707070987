"""Read pairs of a true and a false text.

A file is either JSON of pairs, ``{"pairs": [{"true": "Paris is in France.", "false": "Paris is in Peru."}]}``, or a
fact file with foils (``files``): the prompt with its answer is the true text, with its foil the false one. Other keys
are ignored (metadata).
"""

from pathlib import Path

from interpret.errors import InputError, brief, named
from interpret.facts.files import FactFile, load_facts
from interpret.reading import is_unicode, read_json

SIDES = ("true", "false")


def load_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read a file of pairs, and return (true, false) texts in file order.

    Raises:
        InputError: if the file is missing, is not JSON, or an entry is invalid; the message names it.
    """
    document = read_json(path, like="examples/pairs.json")
    entries = document.get("pairs") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f'{named(path)} has no pairs; expected {{"pairs": [{{"true": "...", "false": "..."}}, ...]}}')
    return [_pair(entry, f"{named(path)}: pairs[{index}]") for index, entry in enumerate(entries)]


def _pair(entry: object, where: str) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected an object with "true" and "false", got {brief(entry)}')
    for side in SIDES:
        text = entry.get(side)
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise InputError(f'{where}: "{side}" is {brief(text)}; expected a text')
    if entry["true"] == entry["false"]:
        raise InputError(f"{where}: both texts are {brief(entry['true'])}; expected different texts")
    return entry["true"], entry["false"]


def pairs_of_facts(facts: str | Path | FactFile) -> tuple[list[tuple[str, str]], int]:
    """Make (true, false) pairs from the facts with foils.

    Args:
        facts: the path of a fact file, or the result of ``load_facts``.

    Returns:
        The pairs, and the number of rows without a pair: facts without a foil, and unreadable rows.

    Raises:
        InputError: if the file is missing or has no facts, or no fact has a foil.
    """
    file = facts if isinstance(facts, FactFile) else load_facts(facts)
    pairs = [
        (_continued(fact.prompt, fact.attribute), _continued(fact.prompt, fact.foil))
        for fact in file.facts
        if fact.foil is not None
    ]
    if not pairs:
        source = named(file.path) if file.path else "facts"
        raise InputError(f'{source}: no fact has a "foil" (a wrong answer), which the false texts need')
    return pairs, len(file.facts) + len(file.bad) - len(pairs)


def _continued(prompt: str, answer: str) -> str:
    return prompt + ("" if prompt[-1].isspace() else " ") + answer
