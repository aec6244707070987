"""Which heads write much into the residual stream, which read much of it, and what they carry between two tokens.

After Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", in which heads read from and write to
the stream, and Kobayashi et al. (2020), "Attention is Not Only a Weight", who weigh an attention by what is carried.
Computed in float64. Shapes: L layers, H heads, D hidden width, W width of a head, P positions.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import record
from interpret.activations.cache import ActivationCache
from interpret.activations.lookup import check_holds, columns_of
from interpret.anatomy import Anatomy, anatomy_of
from interpret.device import in_float64
from interpret.errors import InputError
from interpret.probing._logit_attribution import head_writes
from interpret.probing.composition import Kind, check_kind, grams, head_weights, product_norm
from interpret.probing.heads import attention_patterns, check_looks_back


@torch.no_grad()
def writing_heads(
    model: PreTrainedModel,
    cache: ActivationCache,
    *,
    direction: Tensor | None = None,
    positions: Sequence[int] | None = (-1,),
) -> pd.DataFrame:
    """Rank all heads by how much they write into the residual stream.

    A head writes ``w = W_O z`` at each token, z being its output; the bias of the projection is no head's. Its score is
    the mean of ``norm(w)`` over all prompts and positions, in the units of the stream; with a direction d, the mean of
    ``|w . d| / norm(d)``. Where norms stand after each sum (OPT-350m) or after the
    attention (Gemma 2 and 3, OLMo 2), w is what it is before them.

    Args:
        model: what the cache is of.
        cache: holds ``heads.*``.
        direction: [D], such as a row of the unembedding, which a token's logit reads.
        positions: tokens of each prompt at which to read, -1 the last; None for all.

    Returns:
        A row for each head, with the columns ``rank`` (from 1), ``layer``, ``head`` and ``score``, the largest first.

    Raises:
        InputError: for a cache that lacks what is needed, a position that does not exist, or a direction that is not
            one: of another shape, zero or not finite.
    """
    anatomy = anatomy_of(model)
    unit = _unit(direction, anatomy.width)
    scores = []
    for layer, heads in _held(cache, anatomy, "heads", positions):  # [P, H, W]
        project = anatomy.layers[layer].get_submodule(anatomy.parts.attention_out)
        writes = head_writes(project, heads)[0].double()  # [P, H, D]
        sizes = writes.norm(dim=-1) if unit is None else (writes @ unit).abs()
        scores.append(sizes.mean(dim=0))
    return _ranked(torch.stack(scores))


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

    The score is that of ``composition_scores`` with the stream in place of what another head writes: the mean over all
    prompts and positions of ``norm(R x) / (norm(R) * norm(x))``, x being the stream before the layer as the norm there
    leaves it (as it is, where there is none), and R of the head ``W_QK^T`` for ``query``, ``W_QK`` for ``key`` and
    ``W_OV`` for ``value``, with the Frobenius norm. With a direction d only the part of x along d is read:
    ``R (x . u) u`` with ``u = d / norm(d)``. It depends neither on how weights are shared out among W_Q and W_K, or W_V
    and W_O, nor on the size of x: 0 for a head that reads nothing of x, 1 at most, and for random x about
    ``1 / sqrt(D)``.

    Args:
        model: what the cache is of.
        cache: holds ``resid_pre.*``.
        kind: through what the heads read.
        direction: [D], in the stream before the layers; where norms centre the stream, d is centred too.
        positions: tokens of each prompt at which to read, -1 the last; None for all.

    Returns:
        A row for each head, with the columns ``rank`` (from 1), ``layer``, ``head`` and ``score``, the largest first.

    Raises:
        InputError: for another kind, a cache that lacks what is needed, a position that does not exist, or a direction
            that is not one: of another shape, zero or not finite.
        UnsupportedModelError: for quantised or adapted weights.
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


@torch.no_grad()
def information_flow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, source: int, destination: int
) -> pd.DataFrame:
    """Tell how much each head carries from one token of a prompt to a later one.

    Args:
        model: a causal LM of a known family; it is run without dropout.
        tokenizer: its own.
        prompt: what is read.
        source: position of the token that is looked at, from 0 as the tokenizer gives them or from -1 backwards.
        destination: position of the token that looks; the source itself, or after it.

    Returns:
        A row for each layer and head, in this order, with the columns ``layer``, ``head``, ``attention`` (the
        probability, 0 to 1, as in ``attention_patterns``) and ``norm``: ``norm(attention * W_O v)``, v being the
        source's value, bias included. These vectors, summed over all sources, are what the head writes at the
        destination. Attention alone can be large where next to nothing is carried (Kobayashi et al. 2020).

    Raises:
        InputError: for a token the prompt has not, a prompt of one token, or a source after the destination.
        UnsupportedModelError: for attention that never holds its probabilities, such as flash attention.
    """
    ids = tokenizer(prompt)["input_ids"]
    source, destination = (_position(prompt, len(ids), position) for position in (source, destination))
    check_looks_back(prompt, len(ids))
    if source > destination:
        raise InputError(f"source {source} comes after destination {destination}: no token looks at later ones")
    anatomy, n_heads = anatomy_of(model), model.config.num_attention_heads
    with record(model, [f"v.{layer}" for layer in range(len(anatomy.layers))]) as seen:
        patterns = attention_patterns(model, torch.tensor([ids]))
    rows: list[dict[str, Any]] = []
    for layer, pattern in patterns.items():
        attention = pattern[0, :, destination, source].double()  # [H]
        values = seen[f"v.{layer}"][0, source].cpu()  # [G, W]
        values = values.repeat_interleave(n_heads // len(values), dim=0)
        project = anatomy.layers[layer].get_submodule(anatomy.parts.attention_out)
        carried = attention * head_writes(project, values[None])[0][0].double().norm(dim=-1)
        pairs = zip(attention.tolist(), carried.tolist(), strict=True)
        rows += [
            {"layer": layer, "head": head, "attention": weight, "norm": norm}
            for head, (weight, norm) in enumerate(pairs)
        ]
    return pd.DataFrame(rows)


def _position(prompt: str, n_tokens: int, position: int) -> int:
    """Return a position counted from 0."""
    if not -n_tokens <= position < n_tokens:
        raise InputError(f"{prompt!r} has no token {position}: it is {n_tokens} token{'s'[: n_tokens != 1]} long")
    return position % n_tokens


def _held(
    cache: ActivationCache, anatomy: Anatomy, site: str, positions: Sequence[int] | None
) -> Iterator[tuple[int, Tensor]]:
    """Yield each layer with what is held of all prompts at some positions, [P, ...]."""
    names = [f"{site}.{layer}" for layer in range(len(anatomy.layers))]
    check_holds(cache, names, [f"{site}.*"])
    columns = [columns_of(cache, prompt, positions) for prompt in range(len(cache.token_ids))]
    for layer, name in enumerate(names):
        held = cache[name]
        yield layer, torch.cat([held[prompt, at] for prompt, at in enumerate(columns)])


def _unit(direction: Tensor | None, width: int) -> Tensor | None:
    """Return a direction with length 1, in float64 on the CPU."""
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
    """Return [..., D] without its mean, where the norm before the attention takes it away."""
    norm = anatomy.layers[layer].get_submodule(anatomy.parts.attention_norm)
    centres = anatomy.block != "post_norm" and isinstance(norm, nn.LayerNorm)
    return x - x.mean(dim=-1, keepdim=True) if centres else x


def _ranked(scores: Tensor) -> pd.DataFrame:
    """Make rows of the scores of all heads, [L, H], the largest first."""
    layers, heads = zip(*product(*map(range, scores.shape)), strict=True)
    frame = pd.DataFrame({"layer": layers, "head": heads, "score": scores.flatten().tolist()})
    frame = frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    frame.insert(0, "rank", range(1, len(frame) + 1))
    return frame
