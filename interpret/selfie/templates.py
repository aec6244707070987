"""Interpretation prompts: texts with slots into which hidden states are inserted (SelfIE).

A slot is a placeholder in the text. The whole text is tokenised at once, so that the model reads the tokens of the
joined text, and the slots are found by the characters that each token covers.
Source: Chen, Vondrick & Mao 2024, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError, unknown
from interpret.prompts.chat import MODEL_TEMPLATE, has_template, wrap
from interpret.prompts.encoding import encode
from interpret.prompts.spelling import Span
from interpret.prompts.tokens import overlapping
from interpret.selfie.settings import SLOTS

SLOTS_FIELD = "{slots}"


class InterpretationPrompt:
    """A text with slots, as token ids.

    Args:
        tokenizer: tokenizer of the model that will read the prompt.
        sequence: texts, and for each slot any object that is not a string. The texts are joined as they are.
        placeholder: text in a slot before insertion; it must be one token. A space at its beginning separates it from
            the text before it, one at its end from the text after it, unless there is a space already.
        name: name of the prompt in tables.
        add_special_tokens: whether to begin with the tokenizer's opening tokens, such as <s>.

    Raises:
        InputError: if there is no slot, or the placeholder is not a token of its own in each slot.

    >>> InterpretationPrompt(tokenizer, ("Repeat:", 0, 0, ".")).text  # doctest: +SKIP
    'Repeat: _ _.'
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
        self.name = name
        self._parts = _without_neighbours(sequence)
        self._opens = add_special_tokens
        self.text, places = _joined(sequence, placeholder)
        self._before, _, self._after = placeholder.partition(placeholder.strip())
        if not places:
            raise InputError(
                f"interpretation prompt {name!r} has no slot; give at least one slot for the inserted states"
            )
        encoding = encode(tokenizer, self.text, add_special_tokens=add_special_tokens)
        spans = encoding.spans()
        self.ids = encoding.ids
        self.slots = tuple(_token_at(place, spans, self.text, placeholder) for place in places)

    @property
    def n_places(self) -> int:
        """Number of slots, with each row of neighbouring slots counted once."""
        return self._parts.count(None)

    def with_text(self, tokenizer: PreTrainedTokenizerBase, words: str) -> tuple[int, ...]:
        """Return the token ids of this prompt with a text in place of each slot, or of each row of neighbouring slots.

        The whole is tokenised at once, as a user would write it. The text is separated from its neighbours by the
        spaces of the placeholder, where there is no whitespace already.

        Args:
            tokenizer: tokenizer of the model that will read the prompt.
            words: a text that is not blank; whitespace around it is left out.
        """
        text, pending = "", ""
        for part in self._parts:
            space = self._before if part is None else pending
            own = words.strip() if part is None else part
            text += ("" if not text or text[-1].isspace() or own[:1].isspace() else space) + own
            pending = self._after if part is None else ""
        return encode(tokenizer, text, add_special_tokens=self._opens).ids


def _without_neighbours(sequence: Sequence[Any]) -> list[str | None]:
    """Return the texts of a sequence, and None for each slot or row of neighbouring slots; empty texts are left out."""
    parts = [part if isinstance(part, str) else None for part in sequence if part != ""]
    return [part for index, part in enumerate(parts) if part is not None or index == 0 or parts[index - 1] is not None]


def _joined(sequence: Sequence[Any], placeholder: str) -> tuple[str, list[Span]]:
    """Join texts and placeholders; return the text, and the characters of each placeholder without its spaces."""
    core = placeholder.strip()
    if not core:
        raise InputError(f"placeholder {placeholder!r} is not a single token of this tokenizer; choose another")
    before, _, after = placeholder.partition(core)
    text = ""
    places: list[Span] = []
    pending = ""  # the space after a placeholder, unless the next text begins with one
    for part in sequence:
        if not isinstance(part, str):
            follows_slot = bool(places) and places[-1][1] == len(text)
            separated = not text or text.endswith(" ")
            text += "" if separated else before or pending or (" " if follows_slot else "")
            places.append((len(text), len(text) + len(core)))
            text, pending = text + core, after
        elif part:
            text += ("" if part[0].isspace() else pending) + part
            pending = ""
    return text, places


def _token_at(place: Span, spans: Sequence[Span], text: str, placeholder: str) -> int:
    """Return the position of the one token of a placeholder."""
    tokens = overlapping(spans, place)
    if len(tokens) != 1:
        raise InputError(f"placeholder {placeholder!r} is not a single token of this tokenizer; choose another")
    start, end = spans[tokens[0]]
    if text[start:end].strip() != placeholder.strip():
        raise InputError(
            f"placeholder {placeholder!r} merges with the text beside it to the token {text[start:end]!r}; choose "
            "another, or put a space between the two"
        )
    return tokens[0]


@dataclass(frozen=True)
class Shipped:
    """A shipped interpretation prompt: the user's message and the beginning of the model's answer."""

    message: str
    answer: str


SHIPPED = {
    "summarize": Shipped("{slots}", "Sure, I will summarize the message:"),
    "repeat": Shipped("{slots}", "Sure, I will repeat for you:"),
    "object": Shipped("{slots}", "The object you said is:"),
    "object_you_said": Shipped("{slots}", "The object in your message is:"),
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
    check_words(words)
    if words in SHIPPED:
        opens = chat_template != MODEL_TEMPLATE or not has_template(tokenizer)
        text = _begun_answer(tokenizer, SHIPPED[words], chat_template)
    else:
        opens, text = True, words
    sequence: list[Any] = []
    for part in text.split(SLOTS_FIELD):
        sequence += [*[None] * (n_slots if sequence else 0), part]
    return InterpretationPrompt(tokenizer, sequence, name=words, add_special_tokens=opens)


def check_words(words: str) -> None:
    """Check an interpretation prompt that is given by name or as text.

    Raises:
        InputError: if it is neither a shipped name nor a text with ``{slots}``.
    """
    if words not in SHIPPED and SLOTS_FIELD not in words:
        raise InputError(unknown("interpretation prompt", words, [*SHIPPED, f"a text with {SLOTS_FIELD} in it"]))


def _begun_answer(tokenizer: PreTrainedTokenizerBase, shipped: Shipped, chat_template: str) -> str:
    chat_text = wrap(tokenizer, shipped.message, chat_template)
    plain = chat_template == MODEL_TEMPLATE and not has_template(tokenizer)
    return chat_text.text + ("\n" if plain else "" if chat_text.text[-1:].isspace() else " ") + shipped.answer
