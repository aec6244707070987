"""Tokenise prompts, and find the user's message, the subject and selected tokens by character offsets."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.prompts.chat import ChatText
from interpret.prompts.selectors import select


@dataclass(frozen=True)
class TokenisedPrompt:
    """The T tokens of one prompt, without padding."""

    text: str
    """The text the model reads, including chat markup."""
    ids: Sequence[int]
    """[T] token ids."""
    pieces: Sequence[str]
    """[T] the text of each token."""
    content: Sequence[int]
    """Positions of the tokens of the user's message, without special tokens."""
    subject: Sequence[int] | None
    """Positions of the subject's tokens; None if no subject was given."""


def tokenise(tokenizer: PreTrainedTokenizerBase, chat_text: ChatText, subject: str | None = None) -> TokenisedPrompt:
    """Tokenise a prompt and find the tokens of the user's message and of the subject.

    Args:
        tokenizer: a fast tokenizer; slow ones do not report character offsets.
        chat_text: the text the model reads.
        subject: a part of the user's message that occurs in it exactly once.

    Raises:
        InputError: if the tokenizer is slow, the prompt has no tokens, or the subject does not occur exactly once.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not report the character offsets of tokens; use a fast tokenizer"
        )
    encoded = tokenizer(chat_text.text, add_special_tokens=chat_text.add_special_tokens, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if not ids:
        raise InputError(f"prompt {chat_text.text!r} has no tokens")
    return TokenisedPrompt(
        text=chat_text.text,
        ids=ids,
        pieces=[tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids],
        content=overlapping(offsets, chat_text.content),
        subject=None if subject is None else overlapping(offsets, find_once(subject, chat_text)),
    )


def overlapping(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> list[int]:
    """Return the positions of the tokens that share at least one character with ``span``.

    Args:
        offsets: [T] (start, end) in characters; empty for special tokens that stand for no text.
        span: (start, end) in characters.
    """
    start, end = span
    return [i for i, (first, last) in enumerate(offsets) if first < last and first < end and last > start]


def find_once(part: str, chat_text: ChatText) -> tuple[int, int]:
    """Return the (start, end) in characters of ``part``, which is searched in the user's message only.

    Raises:
        InputError: if it does not occur exactly once.
    """
    start, end = chat_text.content
    message = chat_text.text[start:end]
    at = message.find(part)
    if at < 0:
        raise InputError(f"subject {part!r} is not a part of the prompt {message!r}")
    if message.find(part, at + 1) >= 0:
        raise InputError(
            f"subject {part!r} occurs more than once in the prompt {message!r}; add words until it is unique"
        )
    return start + at, start + at + len(part)


def continuation(tokenizer: PreTrainedTokenizerBase, chat_text: ChatText, words: str) -> tuple[int, ...]:
    """Return the token ids of words that continue a prompt.

    A space is inserted between the two, unless the prompt ends with one or the words begin with one.

    Raises:
        InputError: if there are no words, or they merge with the last token of the prompt.
    """
    prompt = chat_text.text
    if not words.strip():
        raise InputError(f"answer {words!r} has no tokens; leave it out to take the most likely next token")
    space = "" if words[0].isspace() or prompt[-1].isspace() else " "
    before, both = (
        tokenizer(text, add_special_tokens=chat_text.add_special_tokens).input_ids
        for text in (prompt, prompt + space + words)
    )
    if both[: len(before)] != before:
        raise InputError(
            f"answer {words!r} merges with the last token of the prompt {prompt!r}; "
            "end the prompt with a whole word, without a space after it"
        )
    return tuple(both[len(before) :])


def select_tokens(selector: str, prompt: TokenisedPrompt) -> list[int]:
    """Return the positions that a token selector selects in a prompt.

    In addition to the selectors of ``selectors.select``, these names exist: ``content`` (the user's message, without
    markup and special tokens), ``last`` (the last token of the prompt), ``subject`` and ``subject_last``.

    Raises:
        InputError: if the selector does not fit the prompt.
    """
    names = {"content": prompt.content, "last": [len(prompt.ids) - 1]}
    if prompt.subject is not None:
        names |= {"subject": prompt.subject, "subject_last": prompt.subject[-1:]}
    elif any(part.strip().startswith("subject") for part in selector.split(",")):
        raise InputError(f'token selector {selector!r} needs a "subject", which this prompt does not have')
    return select("token", selector, len(prompt.ids), names)
