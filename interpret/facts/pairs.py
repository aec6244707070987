"""Read pairs of a true and a false text.

A file is JSON, ``{"pairs": [{"true": "Paris is in France.", "false": "Paris is in Peru."}]}`` or only the list, or
JSON Lines, CSV or TSV with these columns; or a fact file with foils (``files``): the prompt with its answer is the true
text, with its foil the false one. Other keys are ignored (metadata).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, named
from interpret.facts.files import FactFile, load_facts
from interpret.prompts.rows import rows_of, source_name
from interpret.reading import BadLine, is_unicode

SIDES = ("true", "false")


def load_pairs(source: str | Path | Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Read pairs, and return (true, false) texts in their order.

    Args:
        source: a file (JSON, ``.jsonl``, ``.csv``, ``.tsv``), a list of dicts with the same keys, or a Hugging Face
            data set.

    Raises:
        InputError: if the file is missing, is not JSON, or an entry is invalid; the message names it.
    """
    entries = rows_of(source, within="pairs", like="examples/pairs.json")
    if not entries:
        what = named(source) if isinstance(source, (str, Path)) else "pairs"
        raise InputError(f'{what} has no pairs; expected {{"pairs": [{{"true": "...", "false": "..."}}, ...]}}')
    return [_pair(entry, f"{source_name(source)}pairs[{index}]") for index, entry in enumerate(entries)]


def _pair(entry: object, where: str) -> tuple[str, str]:
    if isinstance(entry, BadLine):
        raise InputError(f"{where}: {entry.reason}")
    if not isinstance(entry, Mapping):
        raise InputError(f'{where}: expected an object with "true" and "false", got {brief(entry)}')
    for side in SIDES:
        text = entry.get(side)
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            found = f"; the columns are {brief(list(entry)).strip('[]')}" if text is None else ""
            raise InputError(f'{where}: "{side}" is {brief(text)}; expected a text{found}')
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
