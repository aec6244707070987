"""Tokenise prompts, and find the user's message, the subject and selected tokens by character offsets."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.prompts.chat import ChatText
from interpret.prompts.encoding import Ids, continuation, encode, given_ids
from interpret.prompts.lookalikes import not_a_part
from interpret.prompts.prompts import Prompt
from interpret.prompts.selectors import check_selector, select


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
    message: tuple[int, int]
    """Start and end of the user's message in ``text``, in characters."""
    ends: Sequence[int]
    """[T] where in ``text`` the characters end that a token and those before it cover."""

    def message_until(self, token: int) -> str:
        """Return the user's message up to and including a token, without chat markup; empty before the message.

        A character that several tokens share belongs to the first of them.
        """
        start, end = self.message
        return self.text[start : min(self.ends[token], end)]


def tokenise(tokenizer: PreTrainedTokenizerBase, chat_text: ChatText, subject: str | None = None) -> TokenisedPrompt:
    """Tokenise a prompt and find the tokens of the user's message and of the subject.

    Args:
        tokenizer: the tokenizer of the model.
        chat_text: the text the model reads.
        subject: a part of the user's message that occurs in it exactly once.

    Raises:
        InputError: if the prompt has no tokens, the subject does not occur exactly once, or it cannot be told which
            characters a token covers.
    """
    encoding = encode(tokenizer, chat_text.text, add_special_tokens=chat_text.add_special_tokens)
    if not encoding.ids:
        raise InputError(f"prompt {chat_text.text!r} has no tokens")
    spans = encoding.spans()
    return TokenisedPrompt(
        text=chat_text.text,
        ids=encoding.ids,
        pieces=encoding.pieces(),
        content=overlapping(spans, chat_text.content),
        subject=None if subject is None else overlapping(spans, find_once(subject, chat_text)),
        message=chat_text.content,
        ends=list(accumulate((end for _, end in spans), max)),
    )


def overlapping(spans: Sequence[tuple[int, int]], span: tuple[int, int]) -> list[int]:
    """Return the positions of the tokens that share at least one character with ``span``.

    Args:
        spans: [T] (start, end) in characters; empty for tokens that cover none.
        span: (start, end) in characters.
    """
    start, end = span
    return [i for i, (first, last) in enumerate(spans) if first < last and first < end and last > start]


def find_once(part: str, chat_text: ChatText) -> tuple[int, int]:
    """Return the (start, end) in characters of ``part``, which is searched in the user's message only.

    Raises:
        InputError: if it does not occur exactly once.
    """
    start, end = chat_text.content
    message = chat_text.text[start:end]
    at = message.find(part)
    if at < 0:
        raise InputError(not_a_part("subject", part, message))
    if message.find(part, at + 1) >= 0:
        raise InputError(
            f"subject {part!r} occurs more than once in the prompt {message!r}; add words until it is unique"
        )
    return start + at, start + at + len(part)


def following(
    tokenizer: PreTrainedTokenizerBase, chat_text: ChatText, answer: str | Sequence[int], what: str = "answer"
) -> Ids:
    """Return the token ids of what follows a prompt, given as words or as token ids.

    Args:
        tokenizer: the tokenizer of the model.
        chat_text: the text of the prompt as the model reads it.
        answer: words, as in ``encoding.continuation``, or token ids.
        what: what follows the prompt, for messages.

    Raises:
        InputError: if there are no words or ids, an id does not exist, or the words merge with the prompt's last token.
    """
    if not isinstance(answer, str):
        return given_ids(tokenizer, answer, what)
    return continuation(tokenizer, chat_text.text, answer, add_special_tokens=chat_text.add_special_tokens, what=what)


def select_tokens(selector: str, prompt: TokenisedPrompt, more: Mapping[str, Sequence[int]] | None = None) -> list[int]:
    """Return the positions that a token selector selects in a prompt.

    In addition to the selectors of ``selectors.select``, these names exist: ``content`` (the user's message, without
    markup and special tokens), ``last`` (the last token of the prompt), ``subject`` and ``subject_last``; and those of
    ``more``, with the positions that they stand for.

    Raises:
        InputError: if the selector does not fit the prompt.
    """
    names = {"content": prompt.content, "last": [len(prompt.ids) - 1], **(more or {})}
    if prompt.subject is not None:
        names |= {"subject": prompt.subject, "subject_last": prompt.subject[-1:]}
    elif needs_subject(selector):
        raise InputError(_lacking(selector))
    return select("token", selector, len(prompt.ids), names)


def check_tokens(selector: str, more: Collection[str] = ()) -> None:
    """Check what can be checked of a token selector without a prompt; ``more`` are further names.

    Raises:
        InputError: if a part of it is not a selector.
    """
    check_selector("token", selector, ["content", "last", "subject", "subject_last", *more])


def needs_subject(selector: str) -> bool:
    """Return whether a token selector selects tokens of the subject."""
    return any(part.strip().startswith("subject") for part in selector.split(","))


def without_subject(prompts: Sequence[Prompt], selector: str) -> dict[str, str]:
    """Return the prompts that have no subject although a token selector needs one: name -> reason to drop it.

    Raises:
        InputError: if no prompt is left.
    """
    lacking = {one.name: _lacking(selector) for one in prompts if one.subject is None and needs_subject(selector)}
    if lacking and len(lacking) == len(prompts):
        raise InputError(f"prompt {prompts[0].name}: {_lacking(selector)}")
    return lacking


def _lacking(selector: str) -> str:
    return f'token selector {selector!r} needs a "subject", which this prompt does not have'
