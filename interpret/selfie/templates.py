"""Interpretation prompts: texts with slots into which hidden states are inserted (SelfIE).

They are assembled from token ids: each text between slots is encoded separately, and each slot is one placeholder
token, so no slot can merge with its neighbours. Slot positions are not computed from the lengths of encoded prefixes.
Source: Chen, Vondrick & Mao 2024, section 3.
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
        tokenizer: tokenizer of the model that will read the prompt.
        sequence: texts, and for each slot any object that is not a string.
        placeholder: text of the token in a slot before insertion; it must be one token, with or without the space
            before it.
        name: name of the prompt in tables.
        add_special_tokens: whether to begin with the tokenizer's opening tokens, such as <s>.

    Raises:
        InputError: if there is no slot, or the placeholder is not one token.

    >>> InterpretationPrompt(tokenizer, ("Repeat:", 0, 0, ".")).slots  # doctest: +SKIP
    (2, 3)
    """

    name: str
    text: str
    """The prompt with placeholders in its slots, without opening tokens."""
    ids: tuple[int, ...]
    """[T] token ids."""
    slots: tuple[int, ...]
    """Positions of the slots in ``ids``, ascending."""

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
            raise InputError(
                f"interpretation prompt {name!r} has no slot; give at least one slot for the inserted states"
            )
        self.name, self.ids, self.slots = name, tuple(ids), tuple(slots)
        self.text = tokenizer.decode(ids[len(opening) :], clean_up_tokenization_spaces=False)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _placeholder_id(tokenizer: PreTrainedTokenizerBase, placeholder: str) -> int:
    """Return the id of the placeholder token; SentencePiece itself adds the space before a word."""
    for text in (placeholder, placeholder.strip()):
        ids = _encode(tokenizer, text)
        if len(ids) == 1:
            return ids[0]
    raise InputError(f"placeholder {placeholder!r} is not a single token of this tokenizer; choose another")


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer adds before a text."""
    plain = _encode(tokenizer, "a")
    full = tokenizer("a")["input_ids"]
    return full[: next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)]


@dataclass(frozen=True)
class Shipped:
    """A shipped interpretation prompt: the user's message and the beginning of the model's answer."""

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
    """Build an interpretation prompt from the name of a shipped one or from a text.

    Args:
        tokenizer: tokenizer of the model that will read the prompt.
        words: a name in ``SHIPPED``, whose message is put into the chat template; or a text that contains
            ``{slots}``, used without a chat template, such as
            ``"[INST]{slots} [/INST] Sure, I will repeat for you:"``.
        n_slots: number of slots that replace ``{slots}``.
        chat_template: ``model``, or a text that contains ``{prompt}``, as in ``interpret.prompts.chat.wrap``.

    Raises:
        InputError: if ``words`` is neither a shipped name nor a text with ``{slots}``, ``n_slots`` is below 1, or the
            chat template is invalid.
    """
    if n_slots < 1:
        raise InputError(f"the number of slots is {n_slots}; an interpretation prompt needs at least 1")
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
