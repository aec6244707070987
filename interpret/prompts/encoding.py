"""From texts to the token ids that a model reads: the one place that decides about special tokens and joined texts.

The ids are those of the tokenizer, with two exceptions. A text that begins with the tokenizer's own opening, such as
``<s>``, does not get it twice. Special tokens that the tokenizer adds after a text, such as ``</s>``, are left out:
a model predicts the continuation after the last token of the text.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import category

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.prompts.scripts import combines, joined
from interpret.prompts.spelling import Span, aligned_spans, is_word_piece, pieces
from interpret.prompts.vocabulary import written

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoding:
    """The tokens of a text, as a model reads them."""

    tokenizer: PreTrainedTokenizerBase
    text: str
    ids: Ids
    """[T] token ids."""
    n_opening: int
    """Number of opening tokens such as ``<s>``, which come first, whether the tokenizer or the text itself has them."""
    n_added: int
    """How many of them the text does not have."""
    add_special_tokens: bool
    """Whether the tokenizer was asked for opening tokens."""
    reported: Sequence[Span] | None
    """[T - n_added] the offsets that the tokenizer reports, in characters; None if it reports none."""

    def spans(self) -> list[Span]:
        """Return the (start, end) in characters that each token covers, [T].

        It is empty for an opening token, and for a token that covers no character.

        Raises:
            InputError: if the tokens do not spell the text, and the tokenizer reports no offsets, or wrong ones.
        """
        aligned = aligned_spans(self.tokenizer, self.text, self.ids[self.n_added :])
        if aligned is not None:
            return self._without_opening(aligned)
        if self.reported is None:
            raise InputError(
                f"{type(self.tokenizer).__name__} does not report which characters its tokens cover, and its tokens do "
                f"not spell the text {self.text!r}; use a fast tokenizer"
            )
        found = _completed(self.reported, self.text)
        if found is None:
            raise InputError(
                f"{type(self.tokenizer).__name__} drops characters of the text {self.text!r}, so it cannot be told "
                "which characters its tokens cover; leave out characters that it does not know"
            )
        return self._without_opening(found)

    def _without_opening(self, own: Sequence[Span]) -> list[Span]:
        return [(0, 0)] * self.n_opening + list(own[self.n_opening - self.n_added :])

    def pieces(self) -> list[str]:
        """Return the text of each token, for people to read, [T]; see ``spelling.pieces``."""
        opening, own = self.ids[: self.n_added], self.ids[self.n_added :]
        return pieces(self.tokenizer, opening) + pieces(self.tokenizer, own, self.text, self.reported)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True) -> Encoding:
    """Return the tokens of a text, as a model reads them.

    Args:
        tokenizer: the tokenizer of the model.
        text: the text.
        add_special_tokens: whether the tokenizer puts its opening tokens before the text.

    Raises:
        InputError: for a WordPiece tokenizer, or one that adds special tokens elsewhere than around a text.
    """
    if is_word_piece(tokenizer):
        raise InputError(
            f"{type(tokenizer).__name__} is a WordPiece tokenizer, whose tokens do not keep the text; "
            "use a model with a byte-level BPE or SentencePiece tokenizer"
        )
    plain = _tokenised(tokenizer, text, add_special_tokens=False)
    own = tuple(plain["input_ids"])
    opening = _opening(tokenizer, text, own) if add_special_tokens else ()
    added = opening[: len(opening) - _overlap(opening, own)]
    reported = plain.get("offset_mapping")
    return Encoding(tokenizer, text, added + own, len(opening), len(added), add_special_tokens, reported)


def _completed(spans: Sequence[Span], text: str) -> list[Span] | None:
    """Complete the reported characters of tokens by those that a normaliser composes with the one before them.

    Args:
        spans: [T] (start, end) in characters, as a tokenizer reports them.
        text: the text.

    Returns:
        [T] spans; None if a character is in no token. A tokenizer that leaves out characters reports wrong ones for
        the tokens after them.
    """
    covered = {at for first, end in spans for at in range(first, end)}
    found = []
    for first, end in spans:
        while first < end < len(text) and end not in covered and combines(text[end]):
            end += 1
        found.append((first, end))
    covered |= {at for first, end in found for at in range(first, end)}
    seen = all(at in covered or category(char)[0] in "ZMC" for at, char in enumerate(text))
    return found if seen else None


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True) -> Ids:
    """Return the ids of ``encode``."""
    return encode(tokenizer, text, add_special_tokens=add_special_tokens).ids


def continuation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    words: str,
    *,
    add_special_tokens: bool = True,
    what: str = "answer",
) -> Ids:
    """Return the token ids of words that continue a prompt.

    The words are read as they are given; see ``scripts.joined`` for the space between two words.

    Args:
        tokenizer: the tokenizer of the model.
        prompt: the prompt.
        words: the words.
        add_special_tokens: as in ``encode``.
        what: what the words are, for messages.

    Raises:
        InputError: if there are no words, or they merge with the last token of the prompt.
    """
    if not words:
        raise InputError(f"{what} {words!r} has no tokens; leave it out to take the most likely next token")
    whole = joined(prompt, words)
    before, both = (token_ids(tokenizer, text, add_special_tokens=add_special_tokens) for text in (prompt, whole))
    if both[: len(before)] != before:
        raise InputError(
            f"{what} {words!r} merges with the last token of the prompt {prompt!r}; end the prompt with a whole word, "
            "without a space after it, or give token ids"
        )
    if len(both) == len(before):
        raise InputError(f"{what} {words!r} has no tokens after the prompt {prompt!r}")
    return both[len(before) :]


def given_ids(tokenizer: PreTrainedTokenizerBase, ids: object, what: str) -> Ids:
    """Check token ids that are given instead of a text, and return them.

    Args:
        tokenizer: the tokenizer.
        ids: a list, or a tensor or an array, [T] or [1, T], as tokenizers return.
        what: what they are, for messages.

    Raises:
        InputError: if they are not ids of the tokenizer, or none; the message begins with ``what``.
    """
    ids = _listed(ids)
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise InputError(f"{what} is {ids!r}; give a string, or a list of token ids")
    found = tuple(ids)
    if not found:
        raise InputError(f"{what} has no token ids; give at least one")
    for token in found:
        if type(token) is not int or written(tokenizer, token) is None:
            last = max(tokenizer.get_vocab().values())
            gap = ", but not this one" if type(token) is int and 0 <= token <= last else ""
            raise InputError(f"{what} has the token id {token!r}; this tokenizer has ids 0 to {last}{gap}")
    return found


def _listed(ids: object) -> object:
    """Return the numbers of a tensor or an array as a list, those of the only row if there are rows."""
    numbers = ids.tolist() if hasattr(ids, "tolist") else ids
    only = numbers[0] if isinstance(numbers, list) and len(numbers) == 1 else None
    return only if numbers is not ids and isinstance(only, list) else numbers


def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool) -> Any:
    reports = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    # Not verbose: texts that are too long for a model are refused where they are read, and others are cut into pieces.
    return tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, **reports)


def _opening(tokenizer: PreTrainedTokenizerBase, text: str, own: Ids) -> Ids:
    """Return the special tokens that a tokenizer puts before a text; warn of those it puts after it."""
    if set(own) <= set(tokenizer.all_special_ids):  # they could not be told from those that the tokenizer adds
        text, own = "a", token_ids(tokenizer, "a", add_special_tokens=False)
    whole = tuple(_tokenised(tokenizer, text, add_special_tokens=True)["input_ids"])
    start = next((at for at in range(len(whole)) if whole[at : at + len(own)] == own), None)
    if start is None:
        raise InputError(
            f"{type(tokenizer).__name__} adds special tokens inside the text {text!r}, not only around it; "
            "give the text with its special tokens to another tokenizer"
        )
    closing = whole[start + len(own) :]
    if closing:
        names = "".join(tokenizer.convert_ids_to_tokens(list(closing)))
        warnings.warn(
            f"the tokenizer appends {names} to every text; it is left out, so that the model continues the text",
            stacklevel=2,
        )
    return whole[:start]


def _overlap(opening: Ids, own: Ids) -> int:
    """Return how many of the last opening tokens the text itself begins with."""
    return next(n for n in range(len(opening), -1, -1) if opening[len(opening) - n :] == own[:n])
