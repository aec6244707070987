"""What the lenses are asked about: which positions and tokens, and whether the cache holds what they need."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from transformers import PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.errors import InputError


def check_holds(cache: ActivationCache, names: Sequence[str], ask_for: Sequence[str]) -> None:
    """Refuse a cache in which something is missing.

    Args:
        cache: what there is.
        names: what is needed.
        ask_for: patterns that cover it, for the message.

    Raises:
        InputError: naming the first that is missing.
    """
    for name in names:
        if name not in cache:
            asked = [pattern for pattern in ask_for if any(fnmatchcase(needed, pattern) for needed in names)]
            raise InputError(f"the cache holds no {name}: make it with names={asked}, or more")


def columns_of(cache: ActivationCache, prompt: int, positions: Sequence[int] | None) -> list[int]:
    """Return the columns of some tokens of a prompt: all for None; -1 is its last.

    Raises:
        InputError: for a position the prompt does not have.
    """
    n = len(cache.token_ids[prompt])
    if positions is None:
        return list(range(n))
    for position in positions:
        if not -n <= position < n:
            raise InputError(f"position {position} does not exist; prompt {prompt} has {n} tokens, 0 to {n - 1}")
    return [position % n for position in positions]


def token_id(token: int | str, tokenizer: PreTrainedTokenizerBase | None, n_logits: int) -> int:
    """Return the id of a token that is given as an id, or as a text that is one token.

    Raises:
        InputError: for an id the model does not have, a text without a tokenizer, or one of several tokens.
    """
    if isinstance(token, int):
        if not 0 <= token < n_logits:
            raise InputError(f"token {token} does not exist; this model has tokens 0 to {n_logits - 1}")
        return token
    if tokenizer is None:
        raise InputError(f"token {token!r} is a text: give the tokenizer, or the token's id")
    ids = tokenizer(token, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise InputError(f"{token!r} is {len(ids)} tokens, {tokenizer.convert_ids_to_tokens(ids)}: give a single one")
    return int(ids[0])
