"""Logit lens (nostalgebraist, 2020, "interpreting GPT: the logit lens").

The residual stream after every layer is decoded as the model decodes its last state:
logits = unembedding(final norm(stream)).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.activations.lookup import check_holds, columns_of, token_id
from interpret.anatomy import anatomy_of, check_head, unwrapping
from interpret.anatomy.passes import grad_mode
from interpret.engine.trunk import exit_of
from interpret.errors import InputError
from interpret.finite import left_out, readable, warn
from interpret.probing.show import LensFrame
from interpret.prompts.spelling import piece, pieces

NO_TOKEN = -1
"""Token id of the row that stands for the most likely tokens where no logit is finite."""


@unwrapping
def logit_lens(
    model: PreTrainedModel,
    cache: ActivationCache,
    tokens: Sequence[int | str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    top: int = 5,
    positions: Sequence[int] | None = (-1,),
) -> LensFrame:
    """Apply the final norm and unembedding to the residual stream before each layer and after the last.

    Args:
        model: the causal LM that computed the cache.
        cache: contains ``resid_pre.0`` and ``resid_post.*``.
        tokens: tokens to follow through all layers: ids, or texts of a single token each (with a leading space, if the
            tokenizer keeps it).
        tokenizer: the model's tokenizer; needed if tokens are texts, and for the column ``token``, which is ""
            without it.
        top: number of most likely tokens to list besides.
        positions: positions of each prompt at which to read, -1 for the last; None for all.

    Returns:
        One row per prompt, position, layer and token, the most likely token first, with the columns ``prompt``,
        ``position`` (from 0), ``layer`` (0 to L: the number of layers the stream has passed; L gives the model's own
        logits), ``token_id``, ``token``, ``logit``, ``probability`` (0 to 1) and ``rank`` (1 for the most likely; equal
        logits share a rank). A logit that is not finite is not among the most likely, and has no rank (NaN);
        where there is no finite logit, one row with the ``token_id`` -1 takes their place. Such logits are counted in
        a warning; they make all probabilities of their position NaN.

    Raises:
        InputError: if the cache lacks an activation, or a token or position does not exist, or ``top`` does not fit.
        UnsupportedModelError: if the model's family is not supported, or logits from its states are not its own.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interpret.activations.cache import activation_cache
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> cache = activation_cache(model, None, [[3, 1, 4]])
    >>> logit_lens(model, cache, [7], top=0).layer.tolist()
    [0, 1, 2]
    """
    n_layers = len(anatomy_of(model).layers)
    check_head(model)
    names = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(n_layers))]
    check_holds(cache, names, ["resid_pre.0", "resid_post.*"])
    end = exit_of(model)
    followed = [token_id(token, tokenizer, end.n_logits) for token in tokens]
    if not 0 <= top <= end.n_logits or not (top or followed):
        raise InputError(f"top is {top}: give 1 to {end.n_logits}, or 0 and some tokens to follow")
    columns = [columns_of(cache, prompt, positions) for prompt in range(len(cache.token_ids))]
    rows: list[dict[str, Any]] = []
    for layer, name in enumerate(names):
        stream = cache[name]
        for prompt, at in enumerate(columns):
            with grad_mode(False):
                logits = end.logits(stream[prompt, at].to(end.device)).cpu()  # [P, V]
            for position, here in zip(at, logits, strict=True):
                place = {"prompt": prompt, "position": position, "layer": layer}
                rows += [place | reading for reading in _readings(here, followed, top)]
    frame = pd.DataFrame(rows).sort_values(["prompt", "position", "layer"], kind="stable", ignore_index=True)
    frame.insert(4, "token", _texts(tokenizer, frame["token_id"].tolist()))
    warn(left_out(frame["probability"], "probabilities", "the ranks"))
    found = LensFrame(frame)
    found.prompts, found.followed = token_texts(cache, tokenizer), followed
    return found


def _readings(logits: Tensor, followed: Sequence[int], top: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one position, given its logits, [V]; the most likely token first, unreadable logits last."""
    sound = readable(logits)
    likely = [token for token in sound.topk(top).indices.tolist() if logits[token] < math.inf]
    if top and not likely:
        yield {"token_id": NO_TOKEN, "logit": math.nan, "probability": math.nan, "rank": math.nan}
    listed = torch.tensor(list(dict.fromkeys([*likely, *followed])), dtype=torch.long)
    probabilities = logits.softmax(dim=-1)
    for token in listed[sound[listed].argsort(descending=True, stable=True)].tolist():
        logit = logits[token].item()
        yield {
            "token_id": token,
            "logit": logit,
            "probability": probabilities[token].item(),
            "rank": int((sound > logit).sum()) + 1 if logit < math.inf else math.nan,
        }


def _texts(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> list[str]:
    """Return the texts of tokens; "" without a tokenizer, and for no token."""
    texts = {} if tokenizer is None else {one: piece(tokenizer, one) for one in set(ids) if one != NO_TOKEN}
    return [texts.get(one, "") for one in ids]


def token_texts(cache: ActivationCache, tokenizer: PreTrainedTokenizerBase | None) -> list[list[str]]:
    """Return the texts of the tokens of each prompt, [B][T]; their ids in brackets without a tokenizer."""
    if tokenizer is None:
        return [[f"[{token}]" for token in ids] for ids in cache.token_ids]
    return [pieces(tokenizer, ids) for ids in cache.token_ids]
