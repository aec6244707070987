"""Rank heads by what they write to and read from the residual stream, and measure what they move between tokens.

After Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", in which heads read from and write to
the stream, and Kobayashi et al. (2020), "Attention is Not Only a Weight", who weight attention by the norm of what is
moved.
Computed in float64. Shapes: L layers, H heads, D hidden width, W width of a head, P positions.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import record
from interpret.activations.cache import ActivationCache
from interpret.activations.lookup import check_holds, columns_of
from interpret.anatomy import Anatomy, anatomy_of, centres, residual_factor, text_config, unwrapping
from interpret.device import in_float64
from interpret.errors import InputError
from interpret.finite import descending, left_out, warn
from interpret.probing._logit_attribution import head_writes
from interpret.probing.composition import Kind, check_kind, grams, head_weights, product_norm
from interpret.probing.heads import attention_patterns, check_looks_back
from interpret.prompts.encoding import token_ids


@unwrapping
@torch.no_grad()
def writing_heads(
    model: PreTrainedModel,
    cache: ActivationCache,
    *,
    direction: Tensor | None = None,
    positions: Sequence[int] | None = (-1,),
) -> pd.DataFrame:
    """Rank all heads by how much they write to the residual stream.

    At each token, a head writes ``w = W_O z``, where z is its output; the bias of the projection belongs to no head.
    The score is the mean of ``norm(w)`` over all prompts and positions, in the units of the stream; with a direction d,
    it is the mean of ``|w . d| / norm(d)``. If norms follow each sum (OPT-350m) or the attention (Gemma 2 and 3,
    OLMo 2), w is taken before them.

    Args:
        model: the model that computed the cache.
        cache: contains ``heads.*``.
        direction: [D], such as the row of the unembedding that gives a token's logit.
        positions: positions of each prompt at which to read, -1 for the last; None for all.

    Returns:
        One row per head, with the columns ``rank`` (from 1), ``layer``, ``head`` and ``score``, the largest first;
        last and without a rank (NaN) those that are not finite.

    Raises:
        InputError: if the cache lacks an activation, a position does not exist, or the direction has another shape, is
            zero or is not finite.
    """
    anatomy = anatomy_of(model)
    unit = _unit(direction, anatomy.width)
    scores = []
    for layer, heads in _held(cache, anatomy, "heads", positions):  # [P, H, W]
        project = anatomy.layers[layer].get_submodule(anatomy.parts.attention_out)
        writes = head_writes(project, heads)[0].double() * residual_factor(anatomy)  # [P, H, D]
        sizes = writes.norm(dim=-1) if unit is None else (writes @ unit).abs()
        scores.append(sizes.mean(dim=0))
    return _ranked(torch.stack(scores))


@unwrapping
@torch.no_grad()
def reading_heads(
    model: PreTrainedModel,
    cache: ActivationCache,
    kind: Kind,
    *,
    direction: Tensor | None = None,
    positions: Sequence[int] | None = (-1,),
) -> pd.DataFrame:
    """Rank all heads by how much of the residual stream they read.

    The score is that of ``composition_scores`` with the residual stream in place of what another head writes: the mean
    over all prompts and positions of ``norm(R x) / (norm(R) * norm(x))``. x is the input of the layer, after the norm
    before the attention if there is one, whose weights are part of R. R is ``W_QK^T`` for ``query``, ``W_QK`` for
    ``key`` and ``W_OV`` for ``value``, with the Frobenius norm. With a direction d, only the component of x along d is
    read: ``R (x . u) u`` with ``u = d / norm(d)``. The score does not depend on the size of x, nor on how the weights
    are scaled between W_Q and W_K, or W_V and W_O. It is 0 for a head that reads nothing of x, at most 1, and about
    ``1 / sqrt(D)`` for random x.

    Args:
        model: the model that computed the cache.
        cache: contains ``resid_pre.*``.
        kind: ``query``, ``key`` or ``value``, the input through which the heads read.
        direction: [D], in the residual stream before the layers; if norms centre the stream, d is centred too.
        positions: positions of each prompt at which to read, -1 for the last; None for all.

    Returns:
        One row per head, with the columns ``rank`` (from 1), ``layer``, ``head`` and ``score``, the largest first;
        last and without a rank (NaN) those that are not finite.

    Raises:
        InputError: if ``kind`` is none of these, the cache lacks an activation, a position does not exist, or the
            direction has another shape, is zero or is not finite.
        UnsupportedModelError: if the weights are quantised or adapted.
    """
    check_kind(kind)
    anatomy = anatomy_of(model)
    scores = []
    for layer, stream in _held(cache, anatomy, "resid_pre", positions):  # [P, D]
        left, right = (in_float64(factor) for factor in head_weights(model, layer).reading(kind))
        left_gram, right_gram = grams(left, right)
        x = _centred(anatomy, layer, stream.to(left))
        unit = _unit(direction if direction is None else _centred(anatomy, layer, direction), anatomy.width)
        seen = x if unit is None else (x @ unit.to(x))[:, None] * unit.to(x)
        inner = torch.einsum("hwd,pd->hpw", right, seen)
        read = ((inner @ left_gram) * inner).sum(dim=-1).clamp_min(0).sqrt()  # [H, P]
        sizes = product_norm(left_gram, right_gram)[:, None] * x.norm(dim=-1)
        scores.append((read / sizes).mean(dim=1).cpu())
    return _ranked(torch.stack(scores))


@unwrapping
@torch.no_grad()
def information_flow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, source: int, destination: int
) -> pd.DataFrame:
    """Measure how much each head moves from one token of a prompt to a later one.

    Args:
        model: a causal LM of a supported family; dropout is off.
        tokenizer: the model's tokenizer.
        prompt: the text.
        source: position of the token that is attended to; positions count from 0, special tokens included, or from -1
            backwards.
        destination: position of the token that attends: the source itself, or a later token.

    Returns:
        One row per layer and head, in this order, with the columns ``layer``, ``head``, ``attention`` (probability, 0
        to 1, as in ``attention_patterns``) and ``norm``: ``norm(attention * W_O v)``, where v is the value of the
        source, with its bias. Summed over all sources, these vectors are what the head writes at the destination.
        Attention alone can be large although almost nothing is moved (Kobayashi et al. 2020).

    Raises:
        InputError: for a position outside the prompt, a prompt of one token, or a source after the destination.
        UnsupportedModelError: if the attention does not return its probabilities, such as flash attention.
    """
    ids = token_ids(tokenizer, prompt)
    source, destination = (_position(prompt, len(ids), position) for position in (source, destination))
    check_looks_back(prompt, len(ids))
    if source > destination:
        raise InputError(f"source {source} comes after destination {destination}: no token attends to later ones")
    anatomy, n_heads = anatomy_of(model), text_config(model).num_attention_heads
    with record(model, [f"v.{layer}" for layer in range(len(anatomy.layers))]) as seen:
        patterns = attention_patterns(model, torch.tensor([ids]))
    rows: list[dict[str, Any]] = []
    for layer, pattern in patterns.items():
        attention = pattern[0, :, destination, source].double()  # [H]
        values = seen[f"v.{layer}"][0, source].cpu()  # [G, W]
        values = values.repeat_interleave(n_heads // len(values), dim=0)
        project = anatomy.layers[layer].get_submodule(anatomy.parts.attention_out)
        written = head_writes(project, values[None])[0][0].double() * residual_factor(anatomy)  # [H, D]
        carried = attention * written.norm(dim=-1)
        pairs = zip(attention.tolist(), carried.tolist(), strict=True)
        rows += [
            {"layer": layer, "head": head, "attention": weight, "norm": norm}
            for head, (weight, norm) in enumerate(pairs)
        ]
    return pd.DataFrame(rows)


def _position(prompt: str, n_tokens: int, position: int) -> int:
    """Return a position as an index from 0."""
    if not -n_tokens <= position < n_tokens:
        raise InputError(f"{prompt!r} has no token {position}: it is {n_tokens} token{'s'[: n_tokens != 1]} long")
    return position % n_tokens


def _held(
    cache: ActivationCache, anatomy: Anatomy, site: str, positions: Sequence[int] | None
) -> Iterator[tuple[int, Tensor]]:
    """Yield each layer with the cached activations of all prompts at the given positions, [P, ...]."""
    names = [f"{site}.{layer}" for layer in range(len(anatomy.layers))]
    check_holds(cache, names, [f"{site}.*"])
    columns = [columns_of(cache, prompt, positions) for prompt in range(len(cache.token_ids))]
    for layer, name in enumerate(names):
        held = cache[name]
        yield layer, torch.cat([held[prompt, at] for prompt, at in enumerate(columns)])


def _unit(direction: Tensor | None, width: int) -> Tensor | None:
    """Normalise a direction to length 1, in float64 on the CPU."""
    if direction is None:
        return None
    if direction.shape != (width,):
        raise InputError(f"direction has shape {tuple(direction.shape)}: give ({width},)")
    direction = direction.detach().cpu().double()
    length = direction.norm()
    if not 0 < length < torch.inf:
        raise InputError(f"direction has length {length.item()}: give one that is finite and above 0")
    return direction / length


def _centred(anatomy: Anatomy, layer: int, x: Tensor) -> Tensor:
    """Subtract the mean of [..., D] if the norm before the attention does so."""
    norm = anatomy.layers[layer].get_submodule(anatomy.parts.attention_norm)
    subtracts = anatomy.block != "post_norm" and centres(norm)
    return x - x.mean(dim=-1, keepdim=True) if subtracts else x


def _ranked(scores: Tensor) -> pd.DataFrame:
    """Return one row per head for the scores of all heads, [L, H], the largest first, those not finite last."""
    warn(left_out(scores, "scores of heads", "the ranking"))
    layers, heads = zip(*product(*map(range, scores.shape)), strict=True)
    frame = pd.DataFrame({"layer": layers, "head": heads, "score": scores.flatten().tolist()})
    frame = frame.iloc[sorted(range(len(frame)), key=lambda row: descending(frame["score"][row]))]
    frame = frame.reset_index(drop=True)
    ranked = np.isfinite(frame["score"].to_numpy())
    ranks = np.arange(1, len(frame) + 1)
    frame.insert(0, "rank", ranks if ranked.all() else np.where(ranked, ranks, np.nan))
    return frame
