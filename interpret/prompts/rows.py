"""Understand the rows of files and data sets: which column holds the prompt, its subject, its answer and a foil.

Rows of our own have the columns of ``OWN``; of the data sets of facts that people have, those of ``DATA_SETS`` and
CounterFact::

    {"requested_rewrite": {"prompt": "{} is located in", "subject": "Lake Como", "target_true": {"str": "Italy"},
     "target_new": {"str": "Norway"}, "relation_id": "P17"}}

The placeholder ``{}`` of a prompt or a template stands for the subject. Empty values count as absent. Every command and
function that takes prompts or facts, from a file, an option or Python, reads them here (``item_of``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, misspelt, named
from interpret.reading import BadLine, is_unicode, parse_json, read_rows

BLANK = "{}"
"""Placeholder of the subject in a template."""
Continuation = str | tuple[int, ...]
"""What follows a prompt: words, or token ids."""


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of rows."""

    name: str
    """Name of the data set."""
    marks: tuple[str, ...]
    """A row that has one of these columns is of this kind."""
    prompt: str
    answer: str
    """The correct continuation: a text, or a list of texts, of which the first is used."""
    foil: str
    """A wrong continuation."""
    template: str
    """The prompt with ``{}`` in place of the subject; the prompt itself may be left out then."""


OWN = Columns("known_1000", (), "prompt", "attribute", "foil", "template")
"""The columns of known_1000, and of our own files; there, the answer may also be called ``target``."""
DATA_SETS = (
    Columns("counterfact-tracing", ("target_true",), "prompt", "target_true", "target_false", "relation"),
    Columns("zsRE", ("src",), "src", "answers", "alt", "template"),
    Columns("EasyEdit", ("target_new", "ground_truth"), "prompt", "ground_truth", "target_new", "template"),
)
REWRITE = "requested_rewrite"
_REWRITE_KEYS = ("subject", "prompt", "relation_id", "target_true", "target_new")
_OWN_KEYS: tuple[str, ...] = (
    *("prompt", "category", "raw", "subject", "target", "target_ids", "foil", "foil_ids"),
    *("states", "attribute", "template", "relation_id", "occurrence", "known_id", "case_id", REWRITE),
)
_WORDS = {str: "a string", bool: "true or false", list: "a list of token ids", int: "a whole number"}


@dataclass(frozen=True)
class Item:
    """A row, understood: a prompt, and what belongs to it."""

    prompt: str | None
    """None if the row has none; so are the other fields."""
    subject: str | None = None
    target: Continuation | None = None
    """The answer."""
    foil: Continuation | None = None
    template: str | None = None
    relation: str | None = None
    category: str | None = None
    raw: bool | None = None
    occurrence: int | None = None
    states: tuple[tuple[int, int], ...] | None = None
    """(layer, token) of hidden states."""
    names: Columns = OWN
    """The names of its columns, for messages."""


def item_of(row: object) -> Item:
    """Understand a row.

    Raises:
        InputError: if it is not a mapping, a value has another type than its column, or a column looks misspelt.
    """
    if isinstance(row, BadLine):
        raise InputError(row.reason)
    if not isinstance(row, Mapping):
        raise InputError(f'expected an object with "prompt", got {brief(row)}')
    if REWRITE in row:
        return _rewritten(row[REWRITE])
    names = next((kind for kind in DATA_SETS if any(row.get(mark) is not None for mark in kind.marks)), OWN)
    if names is OWN:
        _check_spelling(row, _OWN_KEYS)
    subject, template = _text(row, "subject"), _template(row, names.template)
    if subject is not None and names is not OWN:
        subject = subject.strip()  # counterfact-tracing puts a space before it
    return Item(
        prompt=_prompt(_text(row, names.prompt), template, subject),
        subject=subject,
        target=_answer(row) if names is OWN else _first_text(row, names.answer),
        foil=_continuation(row, "foil") if names is OWN else _text(row, names.foil),
        template=template or _with_blank(row.get(names.prompt)),
        relation=_text(row, "relation_id"),
        category=_text(row, "category"),
        raw=_typed(row, "raw", bool),
        occurrence=_typed(row, "occurrence", int),
        states=_states(row),
        names=names,
    )


def _rewritten(rewrite: object) -> Item:
    """Understand what a row of CounterFact holds."""
    if not isinstance(rewrite, Mapping):
        raise InputError(f'"{REWRITE}" is {brief(rewrite)}; expected an object')
    try:
        _check_spelling(rewrite, _REWRITE_KEYS)
        for key in ("subject", "prompt", "target_true"):
            if rewrite.get(key) is None:
                raise InputError(f'"{key}" is missing')
        subject, template = str(_text(rewrite, "subject")).strip(), str(_text(rewrite, "prompt"))
        if template.count(BLANK) != 1:
            raise InputError(f'"prompt" {brief(template)} has to contain {BLANK} exactly once, in place of the subject')
        return Item(
            prompt=template.replace(BLANK, subject),
            subject=subject,
            target=_str_of(rewrite, "target_true"),
            foil=_str_of(rewrite, "target_new") if rewrite.get("target_new") is not None else None,
            template=template,
            relation=_text(rewrite, "relation_id"),
            names=Columns("CounterFact", (), "prompt", "target_true", "target_new", "prompt"),
        )
    except InputError as error:
        raise InputError(f"{REWRITE}: {error}") from None


# ------------------------------------------------------------------------------------------------ rows of a source


def rows_of(source: str | Path | Iterable[Mapping[str, Any]], *, within: str, like: str) -> list[Any]:
    """Return the rows of a file, of a list of dicts, or of a Hugging Face data set.

    Args:
        source: path of a file (``interpret.reading.read_rows``), or an iterable of mappings.
        within: of a JSON object, the key of the list of rows; it also names the rows in messages.
        like: a valid file, which the message names if the path does not exist.

    Raises:
        InputError: if the file cannot be read, or the source is something else.
    """
    if isinstance(source, (str, Path)):
        return read_rows(source, within=within, like=like, cell=cell_value)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        parts = f"; give one of its parts, such as [{next(iter(source))!r}]" if isinstance(source, Mapping) else ""
        raise InputError(f"{within} is a {type(source).__name__}; expected a file, or rows as dicts{parts}")
    rows = list(source)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"{within}[{index}] is {brief(row)}; expected a dict such as {{'prompt': 'Rome is in'}}")
    return rows


def source_name(source: object) -> str:
    """Return what messages call a source of rows: its path, or nothing."""
    return f"{named(source)}: " if isinstance(source, (str, Path)) else ""


def cell_value(column: str, text: str) -> Any:
    """Return the value of a cell of a CSV or TSV file.

    Raises:
        InputError: if the column may hold a list or an object, and the text only begins like one.
    """
    if column == "raw" and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    if column in ("occurrence", "target_ids", "foil_ids", "states") or (
        column in ("answers", "ground_truth", REWRITE) and text.strip().startswith(("[", "{"))
    ):
        try:
            return parse_json(text)
        except InputError:
            raise InputError(f'"{column}" is {brief(text)}; expected it as JSON') from None
    return text


def columns_found(row: object) -> str:
    """Return which columns a row has, and which are understood, to be added to a message; "" for no columns."""
    if not isinstance(row, Mapping) or not row:
        return ""
    found = brief(list(row)).strip("[]")
    known = ", ".join(f"{one.answer!r} ({one.name})" for one in (OWN, *DATA_SETS))
    return (
        f"; the columns are {found}; expected 'prompt', and for facts 'subject' and an answer: 'target', {known}, or "
        f"'{REWRITE}' (CounterFact)"
    )


# ------------------------------------------------------------------------------------------------ values of columns


def _check_spelling(row: Mapping[str, Any], allowed: Sequence[str]) -> None:
    own = (key for key in row if key not in allowed)
    if near := misspelt(own, (key for key in allowed if key not in row)):
        raise InputError(f'key "{near[0]}" looks like "{near[1]}"; correct it, or use another name for your own key')


def _typed(row: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value of a type; None if it is absent."""
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f'"{key}" is {brief(value)}; expected {_WORDS[kind]}')
    if isinstance(value, str) and not is_unicode(value):
        raise InputError(f'"{key}" is {brief(value)}; it has half of a surrogate pair, which is not a character')
    return value


def _text(row: Mapping[str, Any], key: str) -> str | None:
    text: str | None = _typed(row, key, str)
    return text


def _first_text(row: Mapping[str, Any], key: str) -> str | None:
    """Return a text, or the first of a list of texts."""
    value = row.get(key)
    if not isinstance(value, list):
        return _text(row, key)
    if not value or not isinstance(value[0], str):
        raise InputError(f'"{key}" is {brief(value)}; expected a text, or a list of texts')
    return _text({key: value[0]}, key)


def _str_of(row: Mapping[str, Any], key: str) -> str:
    """Return the text of a target of CounterFact."""
    target = row[key]
    words = target.get("str") if isinstance(target, Mapping) else None
    if not isinstance(words, str) or not words.strip():
        raise InputError(f'"{key}" is {brief(target)}; expected an object with "str"')
    return str(_text({key: words}, key))


def _answer(row: Mapping[str, Any]) -> Continuation | None:
    """Return the answer of one of our own rows: ``target``, ``target_ids`` or ``attribute``."""
    target, attribute = _continuation(row, "target"), _text(row, "attribute")
    if target is not None and attribute is not None:
        raise InputError('"target" and "attribute" both give the answer; leave one of them out')
    return attribute if target is None else target


def _continuation(row: Mapping[str, Any], key: str) -> Continuation | None:
    """Return a continuation of the prompt, which is given as text or as token ids."""
    words, ids = _text(row, key), _typed(row, f"{key}_ids", list)
    if words is not None and ids is not None:
        raise InputError(f'"{key}" and "{key}_ids" both give what follows the prompt; leave one of them out')
    if ids == []:
        raise InputError(f'"{key}_ids" is empty; leave it out, or give the ids of the tokens that follow the prompt')
    return words if ids is None else tuple(ids)


def _states(row: Mapping[str, Any]) -> tuple[tuple[int, int], ...] | None:
    """Return the (layer, token) pairs of a row; None if it names none."""
    pairs = row.get("states")
    if pairs is None:
        return None
    if not isinstance(pairs, list) or not pairs or not all(map(_is_pair, pairs)):
        raise InputError(
            f'"states" is {brief(pairs)}; expected pairs of a layer and a token, such as [[3, 5], [7, -1]]'
        )
    return tuple((layer, token) for layer, token in pairs)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value)


def _template(row: Mapping[str, Any], key: str) -> str | None:
    """Return a template; ``relation`` is a column of other data sets, too, where it is none."""
    return _text(row, key) if key == OWN.template else _with_blank(row.get(key))


def _with_blank(text: object) -> str | None:
    return text if isinstance(text, str) and text.count(BLANK) == 1 and is_unicode(text) else None


def _prompt(prompt: str | None, template: str | None, subject: str | None) -> str | None:
    """Return the prompt with its subject in place of ``{}``, or the template filled in if there is no prompt."""
    whole = _with_blank(template) if prompt is None else prompt
    if whole is None or subject is None or not subject.strip():
        return prompt
    if whole is prompt and (_with_blank(whole) is None or subject.strip() in whole):
        return prompt
    return whole.replace(BLANK, subject.strip())
