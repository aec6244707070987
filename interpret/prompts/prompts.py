"""Read prompt files into ``Prompt`` objects. Errors name the file, the index of the entry and its key.

The file is JSON: ``{"examples": [{"prompt": "...", "category": "...", "raw": false, "subject": "...",
"target": "...", "foil": "..."}]}``. Only ``prompt`` and ``category`` are required. In place of ``target`` and ``foil``,
``target_ids`` and ``foil_ids`` give the ids of the tokens that follow the prompt. Unknown keys are ignored (metadata),
unless one looks like a misspelt key.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, misspelt, named
from interpret.prompts.lookalikes import not_a_part
from interpret.reading import is_unicode, read_json

KEYS = {
    "prompt": str,
    "category": str,
    "raw": bool,
    "subject": str,
    "target": str,
    "target_ids": list,
    "foil": str,
    "foil_ids": list,
}
REQUIRED = ("prompt", "category")
WORDS = {str: "a string", bool: "true or false", list: "a list of token ids"}
MODEL_TEMPLATE = "model"
"""As the value of a chat template: the template of the tokenizer."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, as an entry of a prompt file."""

    name: str
    """``{category}_{n}``, numbered from 1 within each category, in the order of the file."""
    text: str
    """The text as the user wrote it, without a chat template."""
    category: str = ""
    raw: bool = False
    """True: the model gets the text unchanged. False: the text is the user's message in a chat."""
    subject: str | None = None
    """What the prompt is about, a substring of ``text``; used by the selectors ``subject`` and ``subject_last``."""
    target: str | tuple[int, ...] | None = None
    """The continuation of the text to explain, as text or as token ids; None: what the model generates."""
    foil: str | tuple[int, ...] | None = None
    """A wrong continuation, with which the target is contrasted."""


def load_examples(path: str | Path) -> list[Prompt]:
    """Read the prompts of a file, in its order.

    Raises:
        InputError: if the file is missing, is not JSON, or has an invalid entry.
    """
    document = read_json(path, like="examples/examples.json")
    entries = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f'{named(path)} has no examples; expected {{"examples": [{{"prompt": ..., "category": ...}}, ...]}}'
        )
    counts: Counter[str] = Counter()
    prompts = []
    for index, entry in enumerate(entries):
        try:
            prompts.append(_prompt(entry, counts))
        except InputError as error:
            raise InputError(f"{named(path)}: examples[{index}]: {error}") from None
    return prompts


def _prompt(entry: object, counts: Counter[str]) -> Prompt:
    """Check one entry and convert it; the caller adds the file and the index to errors."""
    if not isinstance(entry, dict):
        raise InputError(f"expected an object with prompt and category, got {brief(entry)}")
    _check_keys(entry)
    text, subject = entry["prompt"], entry.get("subject")
    if not text.strip():
        raise InputError('"prompt" is empty')
    if subject is not None and (not subject or subject not in text):
        raise InputError(not_a_part('"subject"', subject, text))
    target, foil = (_continuation(entry, key) for key in ("target", "foil"))
    counts[entry["category"]] += 1
    return Prompt(
        name=f"{entry['category']}_{counts[entry['category']]}",
        text=text,
        category=entry["category"],
        raw=entry.get("raw", False),
        subject=subject,
        target=target,
        foil=foil,
    )


def _continuation(entry: Mapping[str, Any], key: str) -> str | tuple[int, ...] | None:
    """Return a continuation of the prompt, which is given as text or as token ids."""
    words, ids = entry.get(key), entry.get(f"{key}_ids")
    if words is not None and ids is not None:
        raise InputError(f'"{key}" and "{key}_ids" both give what follows the prompt; leave one of them out')
    if words == "" or ids == []:
        raise InputError(f'"{key}" is empty; leave it out, or give the words that follow the prompt')
    return words if ids is None else tuple(ids)


def _check_keys(entry: Mapping[str, Any]) -> None:
    for key in REQUIRED:
        if key not in entry:
            raise InputError(f'"{key}" is missing')
    for key, value in entry.items():
        if key in KEYS and not isinstance(value, KEYS[key]):
            raise InputError(f'"{key}" is {brief(value)}; expected {WORDS[KEYS[key]]}')
        if key in KEYS and isinstance(value, str) and not is_unicode(value):
            raise InputError(f'"{key}" is {brief(value)}; it has half of a surrogate pair, which is not a character')
    if near := misspelt(entry, KEYS):
        raise InputError(f'key "{near[0]}" looks like "{near[1]}"; correct it, or use another name for your own key')
