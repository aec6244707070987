"""Logit lens (nostalgebraist, 2020, "interpreting GPT: the logit lens").

The residual stream after every layer is decoded as the model decodes its last state:
logits = unembedding(final norm(stream)).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.activations.lookup import check_holds, columns_of, token_id
from interpret.anatomy import anatomy_of
from interpret.anatomy.passes import grad_mode
from interpret.engine.trunk import exit_of
from interpret.errors import InputError


def logit_lens(
    model: PreTrainedModel,
    cache: ActivationCache,
    tokens: Sequence[int | str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    top: int = 5,
    positions: Sequence[int] | None = (-1,),
) -> pd.DataFrame:
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
        logits share a rank).

    Raises:
        InputError: if the cache lacks an activation, or a token or position does not exist, or ``top`` does not fit.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interpret.activations.cache import activation_cache
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> cache = activation_cache(model, None, [[3, 1, 4]])
    >>> logit_lens(model, cache, [7], top=0).layer.tolist()
    [0, 1, 2]
    """
    n_layers = len(anatomy_of(model).layers)
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
    written = [""] * len(frame) if tokenizer is None else tokenizer.convert_ids_to_tokens(frame["token_id"].tolist())
    frame.insert(4, "token", written)
    return frame


def _readings(logits: Tensor, followed: Sequence[int], top: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one position, given its logits, [V]; the most likely token first."""
    listed = torch.tensor(list(dict.fromkeys([*logits.topk(top).indices.tolist(), *followed])))
    probabilities = logits.softmax(dim=-1)
    for token in listed[logits[listed].argsort(descending=True, stable=True)].tolist():
        yield {
            "token_id": token,
            "logit": logits[token].item(),
            "probability": probabilities[token].item(),
            "rank": int((logits > logits[token]).sum()) + 1,
        }
