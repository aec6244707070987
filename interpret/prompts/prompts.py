"""Read prompts into ``Prompt`` objects. Errors name the file, the index of the entry and its key.

A file of prompts is JSON, ``{"examples": [{"prompt": "...", "category": "...", "raw": false, "subject": "...",
"target": "...", "foil": "..."}]}`` or only the list, or JSON Lines, CSV or TSV with these columns, or plain text with
one prompt per line. Only ``prompt`` is required. In place of ``target`` and ``foil``, ``target_ids`` and ``foil_ids``
give the ids of the tokens that follow the prompt. ``states``, such as ``[[3, 5], [7, -1]]``, are pairs of a layer and a
token, whose hidden states ``interpret selfie`` reads in place of those it selects. Rows of data sets of facts are read
too, see ``rows``. Other keys are ignored (metadata), unless one looks like a misspelt key.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpret.errors import InputError, named
from interpret.prompts.lookalikes import not_a_part
from interpret.prompts.rows import OWN, Continuation, Item, columns_found, item_of, rows_of, source_name

FIELD = "{prompt}"
"""Place of the prompt in a chat template."""
MODEL_TEMPLATE = "model"
"""As the value of a chat template: the template of the tokenizer."""
NO_CATEGORY = "prompt"
"""Category of prompts that have none; the first of them is called ``prompt_1``."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, as an entry of a prompt file."""

    name: str
    """``{category}_{n}``, numbered from 1 within each category, in the order of the file."""
    text: str
    """The text as the user wrote it, without a chat template."""
    category: str = ""
    raw: bool | None = None
    """True: the model gets the text unchanged. False: the text is the user's message in a chat. If it is not given:
    True for a prompt with a target or a foil, which is a text to be continued; False for any other."""
    subject: str | None = None
    """What the prompt is about, a substring of ``text``; used by the selectors ``subject`` and ``subject_last``."""
    target: Continuation | None = None
    """The continuation of the text to explain, as text or as token ids; None: what the model generates."""
    foil: Continuation | None = None
    """A wrong continuation, with which the target is contrasted."""
    states: tuple[tuple[int, int], ...] | None = None
    """(layer, token) of the hidden states to interpret, as in ``plan_sources``; None for those that the run selects."""

    def __post_init__(self) -> None:
        """Decide whether the prompt is raw, if that is not given."""
        if self.raw is None:
            object.__setattr__(self, "raw", self.target is not None or self.foil is not None)


def check_template(template: str) -> None:
    """Check a chat template that is given as text.

    Raises:
        InputError: if it does not say where the prompt goes.
    """
    if template != MODEL_TEMPLATE and template.count(FIELD) != 1:
        raise InputError(f"chat template {template!r} must contain {FIELD} exactly once, where the prompt goes")


def raw_unless_said(*, raw: bool, chat_template: str | None) -> bool | None:
    """Return what prompts are that do not say themselves whether they are raw; None for the rule of ``Prompt.raw``.

    Args:
        raw: whether they are to be read as they are.
        chat_template: the chat template that was asked for; None if none was.

    Raises:
        InputError: if both are given.
    """
    if raw and chat_template is not None:
        raise InputError("raw and chat_template exclude each other: raw prompts are read without a template")
    return True if raw else None if chat_template is None else False


def load_examples(source: str | Path | Iterable[Mapping[str, Any]], *, raw: bool | None = None) -> list[Prompt]:
    """Read prompts, in their order.

    Args:
        source: a file (JSON, ``.jsonl``, ``.csv``, ``.tsv``, ``.txt``), a list of dicts with the same keys, or a
            Hugging Face data set.
        raw: whether entries without the key ``raw`` are raw; None for the rule of ``Prompt.raw``.

    Raises:
        InputError: if the file is missing, is not JSON, has no prompts, or has an invalid entry.

    >>> load_examples([{"prompt": "What is the capital of Japan?"}])[0].name
    'prompt_1'
    """
    rows = rows_of(source, within="examples", like="examples/examples.json")
    if not rows:
        expected = '; expected {"examples": [{"prompt": ..., "category": ...}, ...]}'
        if isinstance(source, (str, Path)):
            raise InputError(f"{named(source)} has no examples{expected}")
        raise InputError("examples is empty; give a file, or at least one Prompt")
    counts: Counter[str] = Counter()
    prompts = []
    for index, row in enumerate(rows):
        # A line of text, and a string in a list of JSON, is a prompt.
        entry = {"prompt": row} if isinstance(row, str) else row
        try:
            prompts.append(_prompt(entry, item_of(entry), counts, raw))
        except InputError as error:
            raise InputError(f"{source_name(source)}examples[{index}]: {error}") from None
    return prompts


def _prompt(row: object, item: Item, counts: Counter[str], raw: bool | None) -> Prompt:
    """Check one entry and convert it; the caller adds the file and the index to errors."""
    text, subject, category = item.prompt, item.subject, item.category or NO_CATEGORY
    if text is None:
        raise InputError(f'"{item.names.prompt}" is missing{columns_found(row)}')
    if not text.strip():
        raise InputError(f'"{item.names.prompt}" is empty')
    if subject is not None and (not subject.strip() or subject not in text):
        raise InputError(not_a_part('"subject"', subject, text))
    for key, words in ((item.names.answer, item.target), (item.names.foil, item.foil)):
        if words == "":
            named_key = "target" if key == OWN.answer else key
            raise InputError(f'"{named_key}" is empty; leave it out, or give the words that follow the prompt')
    counts[category] += 1
    return Prompt(
        name=f"{category}_{counts[category]}",
        text=text,
        category=category,
        raw=raw if item.raw is None else item.raw,
        subject=subject,
        target=item.target,
        foil=item.foil,
        states=item.states,
    )
