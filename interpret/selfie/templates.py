"""Interpretation prompts: texts with slots, into which hidden states are inserted to hear what they say.

They are built from token ids, never by measuring prefixes: every text between slots is encoded by itself, and
each slot is one placeholder token, so no slot can merge with its neighbour. The idea is that of SelfIE (Chen,
Vondrick, Mao 2024, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError, unknown
from interpret.prompts.chat import MODEL_TEMPLATE, has_template, wrap
from interpret.selfie.settings import SLOTS

SLOTS_FIELD = "{slots}"


class InterpretationPrompt:
    """A text with slots, as token ids.

    Args:
        tokenizer: of the model that will read it.
        sequence: texts, and for each slot anything that is not a string.
        placeholder: the text that stands in a slot where nothing is inserted; one token, with or without a space
            before it.
        name: what the prompt is called in tables.
        add_special_tokens: whether the tokenizer's opening tokens, such as <s>, come first.

    Raises:
        InputError: if there is no slot, or the placeholder is not one token.

    >>> InterpretationPrompt(tokenizer, ("Repeat:", 0, 0, ".")).slots  # doctest: +SKIP
    (2, 3)
    """

    name: str
    text: str
    """With the placeholders in the slots."""
    ids: tuple[int, ...]
    """[T] token ids."""
    slots: tuple[int, ...]
    """Positions of the slots among ``ids``, ascending."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sequence: Sequence[Any],
        *,
        placeholder: str = " _",
        name: str = "",
        add_special_tokens: bool = True,
    ) -> None:
        slot = _placeholder_id(tokenizer, placeholder)
        opening = _opening_ids(tokenizer) if add_special_tokens else []
        parts = [_encode(tokenizer, part) if isinstance(part, str) else None for part in sequence]
        ids, slots = list(opening), []
        for part in parts:
            if part is None:
                slots.append(len(ids))
            ids += [slot] if part is None else part
        if not slots:
            raise InputError(f"interpretation prompt {name!r} has no slot, so nothing could be inserted")
        self.name, self.ids, self.slots = name, tuple(ids), tuple(slots)
        self.text = tokenizer.decode(ids[len(opening) :], clean_up_tokenization_spaces=False)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _placeholder_id(tokenizer: PreTrainedTokenizerBase, placeholder: str) -> int:
    """Return the single token of the placeholder; SentencePiece brings the space before a word by itself."""
    for text in (placeholder, placeholder.strip()):
        ids = _encode(tokenizer, text)
        if len(ids) == 1:
            return ids[0]
    raise InputError(f"placeholder {placeholder!r} is not one token for this tokenizer; choose another")


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens the tokenizer writes before a text."""
    plain = _encode(tokenizer, "a")
    full = tokenizer("a")["input_ids"]
    return full[: next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)]


@dataclass(frozen=True)
class Shipped:
    """A ready interpretation prompt: what the user asks, and how the model's answer begins."""

    message: str
    answer: str


SHIPPED = {
    "summarize": Shipped("{slots}", "Sure, I will summarize the message:"),
    "repeat": Shipped("{slots}", "Sure, I will repeat for you:"),
    "about": Shipped("{slots}", "The message is about"),
    "explain": Shipped("What is{slots}?", "{slots} is"),
}


def interpretation_prompt(
    tokenizer: PreTrainedTokenizerBase, words: str, *, n_slots: int = SLOTS, chat_template: str = MODEL_TEMPLATE
) -> InterpretationPrompt:
    """Build a shipped interpretation prompt, by its name, or one from a text.

    Args:
        tokenizer: of the model that will read it.
        words: a name in ``SHIPPED``, whose message is put into the chat template; or any text with ``{slots}`` in
            it, taken as it is, such as ``"[INST]{slots} [/INST] Sure, I will repeat for you:"``.
        n_slots: how many slots ``{slots}`` stands for.
        chat_template: as for ``chat.wrap``.

    Raises:
        InputError: if ``words`` is neither.
    """
    if n_slots < 1:
        raise InputError(f"{n_slots} slots: an interpretation prompt needs at least one")
    if words in SHIPPED:
        opens = chat_template != MODEL_TEMPLATE or not has_template(tokenizer)
        text = _begun_answer(tokenizer, SHIPPED[words], chat_template)
    elif SLOTS_FIELD in words:
        opens, text = True, words
    else:
        raise InputError(unknown("interpretation prompt", words, [*SHIPPED, f"a text with {SLOTS_FIELD} in it"]))
    sequence: list[Any] = []
    for part in text.split(SLOTS_FIELD):
        sequence += [*[None] * (n_slots if sequence else 0), part]
    return InterpretationPrompt(tokenizer, sequence, name=words, add_special_tokens=opens)


def _begun_answer(tokenizer: PreTrainedTokenizerBase, shipped: Shipped, chat_template: str) -> str:
    chat_text = wrap(tokenizer, shipped.message, chat_template)
    plain = chat_template == MODEL_TEMPLATE and not has_template(tokenizer)
    return chat_text.text + ("\n" if plain else "" if chat_text.text[-1:].isspace() else " ") + shipped.answer
