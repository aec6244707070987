"""The entries of a tokenizer's vocabulary: how tokens are written, and which were added to it or are special.

Ids may have gaps, and some tokenizers have thousands of added tokens. Listing all entries takes up to a tenth of a
second, so this module looks up only the ids it is asked about, and keeps the added tokens of each tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADDED: WeakKeyDictionary[PreTrainedTokenizerBase, Mapping[int, Any]] = WeakKeyDictionary()
"""The added tokens that each tokenizer had when they were last listed."""


def written(tokenizer: PreTrainedTokenizerBase, token: int) -> str | None:
    """Return how a tokenizer writes a token; None for an id that it does not have."""
    try:
        name: str | None = tokenizer.convert_ids_to_tokens(int(token))
    except (IndexError, KeyError, OverflowError, TypeError):  # slow tokenizers, and ids that are negative
        return None
    return name


def added_tokens(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> Mapping[int, Any]:
    """Return the added tokens of a tokenizer, id -> ``AddedToken``; all of those among ``ids`` are in it."""
    known = _ADDED.get(tokenizer)
    if known is None or any(token not in known and _outside_model(tokenizer, token) for token in set(ids)):
        known = _ADDED[tokenizer] = dict(tokenizer.added_tokens_decoder)
    return known


def special_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> set[int]:
    """Return which of some ids are special tokens.

    Besides the named ones, such as the beginning and the end of a text, these are the added tokens that are marked as
    special, such as the chat markup of Llama 3, which ``all_special_ids`` does not have.
    """
    named, added = set(tokenizer.all_special_ids), added_tokens(tokenizer, ids)
    return {token for token in set(ids) if token in named or (token in added and added[token].special)}


def _outside_model(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Tell whether a token was added to the vocabulary of the tokenizer's model, which has no such id."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # slow tokenizers keep their added tokens in a dictionary, so that listing them is cheap
        return True
    return token >= 0 and backend.model.id_to_token(token) is None and written(tokenizer, token) is not None
