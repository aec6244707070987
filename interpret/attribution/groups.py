"""Groups of tokens that are masked together, named by text: words, sentences, fields of a template, given parts.

A group is found in the characters of the prompt and becomes a range of its tokens. Shapes: T tokens.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from string import Formatter

from interpret.errors import InputError, brief, closest
from interpret.prompts.encoding import Encoding
from interpret.prompts.lookalikes import not_a_part
from interpret.prompts.spelling import Span
from interpret.prompts.tokens import overlapping

Groups = str | Sequence[str]
"""A unit, a template whose fields are in braces, or parts of the prompt; see ``attribute``."""
_SENTENCE = re.compile(r"[^\s].*?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’）]*|(?=\n)|$)")
UNITS = {
    "words": re.compile(r"\S+"),
    "lines": re.compile(r"\S.*"),
    "sentences": _SENTENCE,
    "paragraphs": re.compile(r"\S(?:.|\n(?!\s*\n))*"),
}
"""Unit -> a pattern that matches each one in a text. A sentence ends with its mark before a space, or with its line; a
paragraph ends before an empty line."""


def check_groups(groups: Groups) -> None:
    """Check what can be checked of groups without a prompt.

    Raises:
        InputError: if they are neither a unit, a template with fields, nor a list of texts.
    """
    if isinstance(groups, str):
        if groups not in UNITS and not is_template(groups):
            near = closest(groups, UNITS)
            hint = f"did you mean {near!r}? " if near else ""
            raise InputError(
                f"groups is {brief(groups)}; {hint}Give a unit ({', '.join(UNITS)}), a template such as "
                "'{name} lives in {city}', or a list of parts of the prompt"
            )
        if is_template(groups):
            _literals(groups)
    elif not groups or not all(isinstance(part, str) and part.strip() for part in groups):
        raise InputError(f"groups is {brief(groups)}; give parts of the prompt, each of them a text that is not empty")


def token_groups(encoding: Encoding, content: Span, groups: Groups) -> tuple[Span, ...]:
    """Return the ranges of tokens that are masked together, (first, one past the last), in order.

    Args:
        encoding: the tokens of the prompt.
        content: the characters of its text in which groups are searched, such as those of the user's message.
        groups: as in ``attribute``; checked by ``check_groups``.

    Raises:
        InputError: if a part is not in the prompt or is there more than once, the template does not fit, two groups
            share a token, or there is none.
    """
    begin, end = content
    text = encoding.text[begin:end]
    spans = encoding.spans()
    named = sorted((begin + first, begin + last) for first, last in _characters(text, groups))
    found = [overlapping(spans, span) for span in named]
    ranges = [(tokens[0], tokens[-1] + 1) for tokens in found if tokens]
    if not ranges:
        raise InputError(f"groups: the text {brief(text)} has no {groups if isinstance(groups, str) else 'groups'}")
    words = [encoding.text[first:last] for (first, last), tokens in zip(named, found, strict=True) if tokens]
    for number, (before, after) in enumerate(pairwise(ranges)):
        if after[0] < before[1]:
            shared = encoding.pieces()[after[0]]
            raise InputError(
                f"groups overlap: {brief(words[number])} and {brief(words[number + 1])} share the token {shared!r}"
            )
    return tuple(ranges)


def _characters(text: str, groups: Groups) -> Iterator[Span]:
    """Yield the characters of each group in a text."""
    if not isinstance(groups, str):
        yield from (_only_place(part, text) for part in groups)
    elif groups in UNITS:
        yield from (found.span() for found in UNITS[groups].finditer(text))
    else:
        yield from _fields(groups, text)


def _only_place(part: str, text: str) -> Span:
    first = text.find(part)
    if first < 0:
        raise InputError(not_a_part("group", part, text))
    if text.find(part, first + 1) >= 0:
        raise InputError(f"group {brief(part)} is in the prompt more than once; give more of the text around it")
    return first, first + len(part)


def is_template(text: str) -> bool:
    """Return whether a text is a template with fields."""
    return "{" in text


def _fields(template: str, text: str) -> list[Span]:
    """Return the characters of each field of a template in a text: a field ends where what follows it first occurs.

    Raises:
        InputError: if the text does not fit.
    """
    opening, *literals = _literals(template)
    at = len(opening) if text.startswith(opening) else -1
    found = []
    for number, literal in enumerate(literals):
        is_last = number == len(literals) - 1
        end = len(text) - len(literal) if is_last else text.find(literal, at + 1)
        if at < 0 or end <= at or not text.startswith(literal, end):
            raise InputError(f"groups: the template {brief(template)} does not fit the prompt {brief(text)}")
        found.append((at, end))
        at = end + len(literal)
    return found


def _literals(template: str) -> list[str]:
    """Return the texts before, between and after the fields of a template.

    Raises:
        InputError: if its braces are not those of fields, or nothing separates two fields.
    """
    found = [""]
    try:
        for literal, field, _, _ in Formatter().parse(template):
            found[-1] += literal
            found += [] if field is None else [""]
    except ValueError as error:
        raise InputError(f"groups: the template {brief(template)} is not understood: {error}") from None
    if "" in found[1:-1]:
        raise InputError(f"groups: nothing separates two fields of the template {brief(template)}; put text in between")
    return found
