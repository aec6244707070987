"""Read fact files: each ``Fact`` is a prompt about a subject, with the answer the model should give.

A file is a JSON list of rows, an object with such a list under ``facts``, or JSON Lines (``.jsonl``, one row per line).
There are two formats of rows, which may be mixed. The format of known_1000 (ROME, Knowledge-Tracing)::

    {"known_id": 7, "subject": "Lake Como", "attribute": "Italy", "prompt": "Lake Como is located in",
     "template": "{} is located in", "relation_id": "P17"}

requires ``subject``, ``attribute`` and ``prompt``; the optional keys ``foil`` and ``occurrence`` are extensions of this
package. The format of CounterFact::

    {"case_id": 7, "requested_rewrite": {"prompt": "{} is located in", "subject": "Lake Como", "relation_id": "P17",
     "target_true": {"str": "Italy"}, "target_new": {"str": "Norway"}}}

An unreadable row does not prevent reading the others: it becomes a ``BadFact`` that says what to fix. Of JSON Lines,
this includes a line that is not JSON.

If a subject occurs several times in its prompt, ``occurrence`` chooses one, counted from 0; otherwise the ``{}`` of
``template`` does. A row with neither is unreadable.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, misspelt, named
from interpret.prompts.lookalikes import not_a_part
from interpret.reading import file_key, is_unicode, numbered_lines, parse_json, read_json, read_text
from interpret.storage.provenance import file_sha256

KNOWN_KEYS = {
    "subject": str,
    "attribute": str,
    "prompt": str,
    "template": str,
    "relation_id": str,
    "foil": str,
    "occurrence": int,
}
REWRITE_KEYS = {"subject": str, "prompt": str, "relation_id": str, "target_true": dict, "target_new": dict}
OTHER_KEYS = ("known_id", "case_id", "requested_rewrite")
WORDS = {str: "a string", int: "a whole number", dict: 'an object with "str"'}
BLANK = "{}"
"""Placeholder of the subject in a template."""
_LONGEST_ID = 100
"""Maximum number of characters of an id, because file names have a maximum length."""


@dataclass(frozen=True)
class Fact:
    """A prompt about a subject, and the answer the model should give."""

    name: str
    """``known_{id}``, ``case_{id}`` or ``fact_{index}``: unique in its file, and a valid part of a file name."""
    prompt: str
    """The text the model reads, without a chat template."""
    subject: str
    """What the fact is about: a literal part of the prompt."""
    attribute: str
    """The answer: the words that continue the prompt, without surrounding spaces."""
    relation: str = ""
    """The relation's id, such as ``P17``; "" if the file has none."""
    foil: str | None = None
    """A wrong answer of the same kind, for contrasts."""
    occurrence: int | None = None
    """Index of the chosen occurrence of the subject, from 0; None if there is only one."""


@dataclass(frozen=True)
class BadFact:
    """A row that could not be read."""

    index: int
    """Index of the row in its file, from 0."""
    name: str
    """The name its fact would have."""
    reason: str
    """What is wrong with the row; names the row and the key."""


@dataclass(frozen=True)
class FactFile:
    """All rows of a file, in file order."""

    facts: list[Fact]
    bad: list[BadFact]
    path: Path | None = field(default=None, compare=False)
    """Path of the file; None for facts that were not read from a file."""
    sha256: str = field(default="", compare=False)
    """Hash of the file's bytes; "" for facts that were not read from a file."""

    @property
    def source(self) -> str | None:
        """The path as text, for a manifest; None for facts that were not read from a file."""
        return None if self.path is None else str(self.path)


def load_facts(path: str | Path) -> FactFile:
    """Read a fact file; see the module docstring for the formats.

    Returns:
        The facts, at least one, and the unreadable rows.

    Raises:
        InputError: if the file is missing, is not JSON, has no list of rows, or no readable row.

    >>> load_facts("examples/facts.json").facts[0].subject
    'Mount Fuji'
    """
    facts: dict[str, Fact] = {}
    bad: list[BadFact] = []
    rows = _rows(Path(path))
    for index, row in enumerate(rows):
        name = f"fact_{index}"
        try:
            name = _name(row, index)
            _check_new(name, facts.get(file_key(name)))
            facts[file_key(name)] = _fact(row, name)
        except InputError as error:
            bad.append(BadFact(index, name, f"row {index}: {error}"))
    if not facts:
        raise InputError(f"{named(path)} has no readable fact; unreadable rows: {len(bad)}; {bad[0].reason}")
    return FactFile(list(facts.values()), bad, Path(path), file_sha256(path))


def occurrences(prompt: str, subject: str) -> list[int]:
    """Return the character positions at which a subject starts in a prompt, including overlapping occurrences.

    >>> occurrences("Anna saw Anna", "Anna")
    [0, 9]
    """
    return [start for start in range(len(prompt)) if prompt.startswith(subject, start)]


# ------------------------------------------------------------------------------------------------ files and rows


@dataclass(frozen=True)
class _BadLine:
    """A line of JSON Lines that is not JSON."""

    reason: str


def _rows(path: Path) -> list[Any]:
    """Return the unchecked rows of a file."""
    if path.suffix == ".jsonl":
        text = read_text(path, like="examples/facts.json")
        rows: Any = [_row_of_line(number, line) for number, line in numbered_lines(text)]
    else:
        rows = read_json(path, like="examples/facts.json")
        rows = rows.get("facts") if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not rows:
        raise InputError(
            f"{named(path)} has no facts; "
            'expected a list of rows, [{"subject": ..., "attribute": ..., "prompt": ...}, ...]'
        )
    return rows


def _row_of_line(number: int, line: str) -> Any:
    try:
        return parse_json(line, nan_allowed=True)
    except InputError as error:
        return _BadLine(f"line {number} {error}")


def _name(row: Any, index: int) -> str:
    """Return the name of a row's fact: from its id, or else from its index."""
    if isinstance(row, _BadLine):
        raise InputError(row.reason)
    if not isinstance(row, dict):
        raise InputError(f"expected an object with subject, attribute and prompt, got {brief(row)}")
    for key, prefix in (("known_id", "known"), ("case_id", "case")):
        if row.get(key) is not None:
            return f"{prefix}_{_id(key, row[key])}"
    return f"fact_{index}"


def _id(key: str, value: Any) -> str:
    """Return an id as the part of a name; it is used in file names."""
    is_number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
    text = str(value) if is_number or isinstance(value, str) else ""
    if not re.fullmatch(r"[\w.-]+", text):
        raise InputError(f'"{key}" is {brief(value)}; expected a number, or letters, digits, "-", "_" and "."')
    if len(text) > _LONGEST_ID:
        raise InputError(f'"{key}" is {brief(value)}; expected at most {_LONGEST_ID} characters')
    return text


def _check_new(name: str, earlier: Fact | None) -> None:
    """Refuse a name whose files would replace those of an earlier fact."""
    if earlier is None:
        return
    if earlier.name == name:
        raise InputError(f"an earlier row has the same name {name!r}; give each row a unique id")
    raise InputError(
        f"an earlier row has the name {earlier.name!r}, whose files some systems do not distinguish from those of "
        f"{name!r}; give ids that differ by more than the case of letters"
    )


def _fact(row: Mapping[str, Any], name: str) -> Fact:
    return _rewrite_fact(row, name) if "requested_rewrite" in row else _known_fact(row, name)


def _known_fact(row: Mapping[str, Any], name: str) -> Fact:
    """Read a row in the format of known_1000."""
    _check(row, KNOWN_KEYS, ("subject", "attribute", "prompt"))
    subject = row["subject"].strip()
    return Fact(
        name=name,
        prompt=row["prompt"],
        subject=subject,
        attribute=row["attribute"].strip(),
        relation=row.get("relation_id") or "",
        foil=_foil(row.get("foil"), "foil"),
        occurrence=_occurrence(row["prompt"], subject, row.get("template"), row.get("occurrence")),
    )


def _rewrite_fact(row: Mapping[str, Any], name: str) -> Fact:
    """Read a row in the format of CounterFact; its prompt is a template."""
    rewrite = row["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise InputError(f'"requested_rewrite" is {brief(rewrite)}; expected an object')
    try:
        _check(rewrite, REWRITE_KEYS, ("subject", "prompt", "target_true"))
        template, subject = rewrite["prompt"], rewrite["subject"].strip()
        if template.count(BLANK) != 1:
            raise InputError(f'"prompt" {brief(template)} has to contain {BLANK} exactly once, in place of the subject')
        prompt = template.replace(BLANK, subject)
        return Fact(
            name=name,
            prompt=prompt,
            subject=subject,
            attribute=_target(rewrite, "target_true"),
            relation=rewrite.get("relation_id") or "",
            foil=_foil(_target(rewrite, "target_new"), "target_new") if rewrite.get("target_new") else None,
            occurrence=_occurrence(prompt, subject, template, None),
        )
    except InputError as error:
        raise InputError(f"requested_rewrite: {error}") from None


def _target(rewrite: Mapping[str, Any], key: str) -> str:
    """Return the text of a CounterFact target."""
    words = rewrite[key].get("str")
    if not isinstance(words, str) or not words.strip():
        raise InputError(f'"{key}" is {brief(rewrite[key])}; expected {WORDS[dict]}')
    return words.strip()


def _foil(words: str | None, key: str) -> str | None:
    if words is not None and not words.strip():
        raise InputError(f'"{key}" is empty; leave it out, or give a wrong answer')
    return None if words is None else words.strip()


def _check(row: Mapping[str, Any], keys: Mapping[str, type], required: Sequence[str]) -> None:
    """Check the keys of a row and the types of its values; other keys are ignored (metadata)."""
    allowed = (*keys, *OTHER_KEYS)
    own = (key for key in row if key not in allowed)
    if near := misspelt(own, (key for key in allowed if key not in row)):
        raise InputError(f'key "{near[0]}" looks like "{near[1]}"; correct it, or use another name for your own key')
    for key, kind in keys.items():
        value = row.get(key)
        if value is None and key in required:
            raise InputError(f'"{key}" is missing')
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise InputError(f'"{key}" is {brief(value)}; expected {WORDS[kind]}')
        if isinstance(value, str) and not is_unicode(value):
            raise InputError(f'"{key}" is {brief(value)}; it has half of a surrogate pair, which is not a character')
        if key in required and isinstance(value, str) and not value.strip():
            raise InputError(f'"{key}" is empty')


def _occurrence(prompt: str, subject: str, template: str | None, chosen: int | None) -> int | None:
    """Return the index of the subject's occurrence that the row chooses; None if there is only one."""
    starts = occurrences(prompt, subject)
    if not starts:
        raise InputError(not_a_part('"subject"', subject, prompt))
    n = len(starts)
    if chosen is not None and not 0 <= chosen < n:
        raise InputError(
            f'"occurrence" is {brief(chosen)}; {brief(subject)} occurs {n} times in the prompt: give 0 to {n - 1}'
        )
    if n == 1:
        return None
    if chosen is not None:
        return chosen
    # Prompts may continue after their template, so only the text before the subject has to match.
    before, blank, _ = (template or "").partition(BLANK)
    if blank and prompt.startswith(before + subject):
        return starts.index(len(before))
    raise InputError(
        f'"subject" {brief(subject)} occurs {n} times in the prompt {brief(prompt)}; '
        f'choose one with "occurrence": 0 to {n - 1}, or give a "template" with {BLANK} in its place'
    )
