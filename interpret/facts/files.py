"""Read facts: each ``Fact`` is a prompt about a subject, with the answer the model should give.

A file is a JSON list of rows, an object with such a list under ``facts``, JSON Lines, CSV or TSV. The format of
known_1000 (ROME, Knowledge-Tracing)::

    {"known_id": 7, "subject": "Lake Como", "attribute": "Italy", "prompt": "Lake Como is located in",
     "template": "{} is located in", "relation_id": "P17"}

requires ``subject``, ``attribute`` (or ``target``) and ``prompt`` (or ``template``); the optional keys ``foil`` and
``occurrence`` are extensions of this package. The rows of other data sets of facts may be mixed with them:
CounterFact, counterfact-tracing, zsRE and EasyEdit, see ``interpret.prompts.rows``.

An unreadable row does not prevent reading the others: it becomes a ``BadFact`` that says what to fix. This includes a
line of JSON Lines that is not JSON, and a row of a table with another number of cells than its header.

If a subject occurs several times in its prompt, ``occurrence`` chooses one, counted from 0; otherwise the ``{}`` of
``template`` does. A row with neither is unreadable.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, named
from interpret.prompts.lookalikes import not_a_part
from interpret.prompts.rows import BLANK, Continuation, Item, columns_found, item_of, rows_of
from interpret.reading import BadLine, file_key
from interpret.storage.provenance import file_sha256

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


def load_facts(source: str | Path | Iterable[Mapping[str, Any]]) -> FactFile:
    """Read facts; see the module docstring for the formats.

    Args:
        source: a file (JSON, ``.jsonl``, ``.csv``, ``.tsv``), a list of dicts with the same keys, or a Hugging Face
            data set.

    Returns:
        The facts, at least one, and the unreadable rows.

    Raises:
        InputError: if the file is missing, is not JSON, has no list of rows, or no readable row.

    >>> load_facts("examples/facts.json").facts[0].subject
    'Mount Fuji'
    """
    facts: dict[str, Fact] = {}
    bad: list[BadFact] = []
    rows = rows_of(source, within="facts", like="examples/facts.json")
    path = Path(source) if isinstance(source, (str, Path)) else None
    what = "facts" if path is None else named(path)
    if not rows:
        expected = 'expected a list of rows, [{"subject": ..., "attribute": ..., "prompt": ...}, ...]'
        raise InputError(f"{what} has no facts; {expected}")
    for index, row in enumerate(rows):
        name = f"fact_{index}"
        try:
            name = _name(row, index)
            _check_new(name, facts.get(file_key(name)))
            facts[file_key(name)] = fact_of(row, name)
        except InputError as error:
            bad.append(BadFact(index, name, f"row {index}: {error}"))
    if not facts:
        more = columns_found(rows[0]) if bad[0].reason.endswith("is missing") else ""
        raise InputError(f"{what} has no readable fact; unreadable rows: {len(bad)}; {bad[0].reason}{more}")
    return FactFile(list(facts.values()), bad, path, "" if path is None else file_sha256(path))


def fact_of(row: object, name: str) -> Fact:
    """Return the fact of a row.

    Args:
        row: a mapping with the columns of one of the formats.
        name: the name of the fact.

    Raises:
        InputError: if the row is not a fact; the message names the key.
    """
    item = item_of(row)
    subject, answer = _required("subject", item.subject), _answer(item)
    prompt = _required(item.names.prompt, item.prompt)
    return Fact(
        name=name,
        prompt=prompt,
        subject=subject.strip(),
        attribute=answer.strip(),
        relation=item.relation or "",
        foil=_foil(item),
        occurrence=_occurrence(prompt, subject.strip(), item.template, item.occurrence),
    )


def occurrences(prompt: str, subject: str) -> list[int]:
    """Return the character positions at which a subject starts in a prompt, including overlapping occurrences.

    >>> occurrences("Anna saw Anna", "Anna")
    [0, 9]
    """
    return [start for start in range(len(prompt)) if prompt.startswith(subject, start)]


# ------------------------------------------------------------------------------------------------ files and rows


def _name(row: Any, index: int) -> str:
    """Return the name of a row's fact: from its id, or else from its index."""
    if isinstance(row, BadLine):
        raise InputError(row.reason)
    if not isinstance(row, Mapping):
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


def _required(key: str, value: str | None) -> str:
    if value is None:
        raise InputError(f'"{key}" is missing')
    if not value.strip():
        raise InputError(f'"{key}" is empty')
    return value


def _answer(item: Item) -> str:
    return _required(item.names.answer, _in_words(item.names.answer, item.target))


def _foil(item: Item) -> str | None:
    words = _in_words(item.names.foil, item.foil)
    if words is not None and not words.strip():
        raise InputError(f'"{item.names.foil}" is empty; leave it out, or give a wrong answer')
    return None if words is None else words.strip()


def _in_words(key: str, continuation: Continuation | None) -> str | None:
    """Return an answer as words: the filter compares it with what the model writes."""
    if isinstance(continuation, tuple):
        raise InputError(f'"{key}" is given as token ids; a fact needs it in words')
    return continuation


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
