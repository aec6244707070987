"""A prompt -> its token ids, and which of them are the user's words, by character offsets."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.prompts.chat import ChatText
from interpret.prompts.selectors import select


@dataclass(frozen=True)
class TokenisedPrompt:
    """The tokens of one prompt, T in all, without padding."""

    text: str
    """What the model reads, chat markup included."""
    ids: Sequence[int]
    """[T] token ids."""
    pieces: Sequence[str]
    """[T] texts, one a token."""
    content: Sequence[int]
    """Positions of the tokens of the user's message, special tokens left out."""
    subject: Sequence[int] | None
    """Positions of the subject's tokens, where the prompt has one."""


def tokenise(tokenizer: PreTrainedTokenizerBase, chat_text: ChatText, subject: str | None = None) -> TokenisedPrompt:
    """Tokenise a prompt and find its content and its subject.

    Args:
        tokenizer: a fast tokenizer; only those know where in the text a token stands.
        chat_text: what the model reads.
        subject: a part of the user's message that occurs there once.

    Raises:
        InputError: if the tokenizer is slow, the prompt has no tokens, or the subject is not to be found once.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot tell where a token stands in the text; use a fast tokenizer"
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
        offsets: [T] (start, end) in characters; special tokens that stand for no text are empty.
        span: (start, end) in characters.
    """
    start, end = span
    return [i for i, (first, last) in enumerate(offsets) if first < last and first < end and last > start]


def find_once(part: str, chat_text: ChatText) -> tuple[int, int]:
    """Return where in the text the user's message says ``part``.

    Raises:
        InputError: if it is not there, or there more than once.
    """
    start, end = chat_text.content
    message = chat_text.text[start:end]
    at = message.find(part)
    if at < 0:
        raise InputError(f"subject {part!r} is not a part of the prompt {message!r}")
    if message.find(part, at + 1) >= 0:
        raise InputError(f"subject {part!r} occurs more than once in the prompt {message!r}; write more of it")
    return start + at, start + at + len(part)


def continuation(tokenizer: PreTrainedTokenizerBase, chat_text: ChatText, words: str) -> tuple[int, ...]:
    """Return the tokens that words have after a prompt, after a space where neither brings one.

    Raises:
        InputError: if there are no words, or they grow together with the end of the prompt.
    """
    prompt = chat_text.text
    if not words.strip():
        raise InputError(f"answer {words!r} has no tokens; leave it out to take the likeliest next token")
    space = "" if words[0].isspace() or prompt[-1].isspace() else " "
    before, both = (
        tokenizer(text, add_special_tokens=chat_text.add_special_tokens).input_ids
        for text in (prompt, prompt + space + words)
    )
    if both[: len(before)] != before:
        raise InputError(
            f"answer {words!r} grows together with the end of the prompt {prompt!r} into other tokens; "
            "end the prompt with a whole word, without a space after it"
        )
    return tuple(both[len(before) :])


def select_tokens(selector: str, prompt: TokenisedPrompt) -> list[int]:
    """Return the positions a token selector names in this prompt.

    Besides what ``selectors.select`` reads: ``content`` (the user's words, without markup and special tokens),
    ``last`` (the prompt's last token), ``subject`` and ``subject_last``.

    Raises:
        InputError: for a selector that does not fit the prompt.
    """
    names = {"content": prompt.content, "last": [len(prompt.ids) - 1]}
    if prompt.subject is not None:
        names |= {"subject": prompt.subject, "subject_last": prompt.subject[-1:]}
    elif any(part.strip().startswith("subject") for part in selector.split(",")):
        raise InputError(f'token selector {selector!r} needs a "subject", which this prompt does not have')
    return select("token", selector, len(prompt.ids), names)
