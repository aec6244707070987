"""Look up positions and tokens for analyses of an activation cache, and check that the cache holds enough."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from transformers import PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.errors import InputError
from interpret.prompts.encoding import token_ids
from interpret.prompts.spelling import pieces


def check_holds(cache: ActivationCache, names: Sequence[str], ask_for: Sequence[str]) -> None:
    """Check that a cache holds the activations an analysis needs.

    Args:
        cache: the cache to check.
        names: names of the activations that are needed.
        ask_for: patterns that cover these names, suggested by the message.

    Raises:
        InputError: if it is no cache, or an activation is missing; the message names the first.
    """
    if not isinstance(cache, ActivationCache):
        raise InputError(
            f"cache is of type {type(cache).__name__}; make one with "
            f"interpret.activations.activation_cache(model, tokenizer, texts, {list(ask_for)})"
        )
    for name in names:
        if name not in cache:
            asked = [pattern for pattern in ask_for if any(fnmatchcase(needed, pattern) for needed in names)]
            raise InputError(f"the cache holds no {name}: make it with names={asked}, or more")


def columns_of(cache: ActivationCache, prompt: int, positions: Sequence[int] | None) -> list[int]:
    """Return the columns of the given positions of a prompt; of all for None. Position -1 is its last token.

    Raises:
        InputError: if the prompt does not have a position.
    """
    n = len(cache.token_ids[prompt])
    if positions is None:
        return list(range(n))
    for position in positions:
        if not -n <= position < n:
            raise InputError(f"position {position} does not exist; prompt {prompt} has {n} tokens, 0 to {n - 1}")
    return [position % n for position in positions]


def token_id(token: int | str, tokenizer: PreTrainedTokenizerBase | None, n_logits: int) -> int:
    """Return the id of a token that is given as an id or as the text of a single token.

    Raises:
        InputError: for an id the model does not have, a text without a tokenizer, or a text of several tokens.
    """
    if isinstance(token, int):
        if not 0 <= token < n_logits:
            raise InputError(f"token {token} does not exist; this model has tokens 0 to {n_logits - 1}")
        return token
    if tokenizer is None:
        raise InputError(f"token {token!r} is a text: give the tokenizer, or the token's id")
    ids = token_ids(tokenizer, token, add_special_tokens=False)
    if len(ids) != 1:
        raise InputError(f"{token!r} is {len(ids)} tokens, {pieces(tokenizer, ids)}: give a single token")
    return int(ids[0])
