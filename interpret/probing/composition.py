"""Weights of attention heads, and composition scores: how strongly a later head reads the output of an earlier one.

After Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits". A head consists of two circuits: QK,
``x_q^T W_QK x_k``, which determines what it attends to, and OV, ``W_OV x_k``, which determines what it writes; W_QK and
W_OV are [D, D] of rank W. The scale of the norm before the attention is folded into the weights, and biases are
ignored; with rotary embeddings, W_QK is that of a token attending to its own position. Norms of queries and keys
(Qwen3, Gemma 3, OLMo 2) and of the attention output (Gemma, OLMo 2) are ignored. Shapes: L layers, H heads, D hidden
width, W width of a head.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.activations.edits import check_index
from interpret.anatomy import (
    Anatomy,
    anatomy_of,
    check_scores,
    input_device,
    key_heads,
    text_config,
    unfused,
    unwrapping,
)
from interpret.device import in_float64
from interpret.errors import InputError, unknown
from interpret.finite import top
from interpret.probing.neurons import plain_weight

Kind = Literal["query", "key", "value"]
"""Through which of its inputs the later head reads: queries, keys or values."""


@dataclass(frozen=True)
class HeadWeights:
    """Weights of the heads of one layer, on its device; keys and values that several heads share are repeated."""

    queries: Tensor
    """[H, W, D] float32; ``keys`` and ``values`` likewise."""
    keys: Tensor
    values: Tensor
    output: Tensor
    """[H, D, W] float32."""

    def reading(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """Return the matrix R by which the heads read, as two factors, [H, D, W] and [H, W, D]; R is their product.

        R is ``W_QK^T`` for ``query``, ``W_QK`` for ``key`` and ``W_OV`` for ``value``.
        """
        return {
            "query": (self.keys.transpose(1, 2), self.queries),
            "key": (self.queries.transpose(1, 2), self.keys),
            "value": (self.output, self.values),
        }[kind]

    def to(self, device: torch.device) -> "HeadWeights":
        """Return the weights on a device."""
        return HeadWeights(*(getattr(self, part.name).to(device) for part in fields(self)))

    def qk(self, head: int) -> Tensor:
        """Return W_QK of a head, [D, D], not scaled; the first index belongs to the query token."""
        return self.queries[head].t() @ self.keys[head]

    def ov(self, head: int) -> Tensor:
        """Return W_OV of a head, [D, D], which maps what the head reads to what it writes."""
        return self.output[head] @ self.values[head]


@dataclass(frozen=True)
class Composition:
    """Composition of two heads: how strongly the later head reads the output of the earlier one."""

    writing_layer: int
    writing_head: int
    reading_layer: int
    reading_head: int
    kind: str
    """``query``, ``key`` or ``value``."""
    score: float
    """From 0 (none) to 1."""


@unwrapping
def head_weights(model: PreTrainedModel, layer: int) -> HeadWeights:
    """Return the weights of a layer's heads.

    Raises:
        InputError: for a layer outside the model.
        UnsupportedModelError: if the model's family is unknown, or its weights are quantised or adapted, or the
            row of the family names other ones.
    """
    anatomy, config = anatomy_of(model), text_config(model)
    check_scores(model)
    check_index("layer", layer, len(anatomy.layers))
    block, parts = anatomy.layers[layer], anatomy.parts
    n_heads = config.num_attention_heads
    n_key_heads = key_heads(config)

    def weight(path: str) -> Tensor:
        return plain_weight(block.get_submodule(path), f"layer {layer}: {path}").float()

    packed = [weight(path) for path in parts.projections]
    if parts.fused:
        fused = unfused(packed[0].t(), parts.fused, n_heads, n_key_heads)  # [D, H, W] each
        split = tuple(part.permute(1, 2, 0) for part in fused)
    else:
        counts = (n_heads, n_key_heads, n_key_heads)
        split = tuple(part.unflatten(0, (count, -1)) for part, count in zip(packed, counts, strict=True))
    scale = _norm_scale(anatomy, layer)
    queries, keys, values = (part.repeat_interleave(n_heads // len(part), dim=0) * scale for part in split)
    output = weight(parts.attention_out).unflatten(1, (n_heads, -1)).transpose(0, 1)  # [H, D, W]
    return HeadWeights(queries, keys, values, output)


def _norm_scale(anatomy: Anatomy, layer: int) -> Tensor:
    """Return the scale of the norm before the attention, [D]; 1 if there is no norm before it."""
    parts = anatomy.parts
    if anatomy.block == "post_norm" or not parts.attention_norm:
        return torch.ones(())
    norm: Any = anatomy.layers[layer].get_submodule(parts.attention_norm)
    scale: Tensor | None = getattr(norm, "weight", None)  # some norms have none
    return torch.ones(()) if scale is None else scale.detach().float() + parts.norm_offset


@dataclass(frozen=True)
class RelationalSubspaces:
    """SVD of each head's query-key matrix: ``W_QK = sum over i of values[i] * queries[:, i] keys[:, i]^T``."""

    values: Tensor
    """[H, k] float32, the largest singular values of W_QK, in descending order."""
    queries: Tensor
    """[H, D, k], unit vectors: directions in the query token."""
    keys: Tensor
    """[H, D, k], unit vectors: directions in the key token. The sign of a pair is arbitrary: both may be flipped."""


@unwrapping
@torch.no_grad()
def relational_subspaces(model: PreTrainedModel, layer: int, k: int = 3) -> RelationalSubspaces:
    """Return the pairs of directions by which the heads of a layer relate tokens: the SVD of each W_QK.

    A head attends from a token with a large component along ``queries[:, i]`` to tokens with a large component along
    ``keys[:, i]``, with strength ``values[i]``. W_QK is not scaled; the norm's scale is folded in, as in
    ``head_weights``.

    Args:
        model: a causal LM of a supported family.
        layer: the layer.
        k: number of pairs of directions per head, at most W.

    Returns:
        The k largest singular values of each head with their directions.

    Raises:
        InputError: for a layer outside the model, or if k is not from 1 to W.
        UnsupportedModelError: if the model's family is unknown, or its weights are quantised or adapted.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> relational_subspaces(model, 1, k=2).queries.shape
    torch.Size([2, 8, 2])
    """
    weights = head_weights(model, layer)
    rank = min(weights.queries.shape[1:])
    if not 1 <= k <= rank:
        raise InputError(f"k is {k}; W_QK of a head has rank {rank}, so give 1 to {rank}")
    # W_QK is [D, D] of rank W: with the QR decompositions Q^T = A B and K^T = C E, only B E^T, [W, W], needs an SVD.
    query_basis, query_core = torch.linalg.qr(in_float64(weights.queries).transpose(1, 2))
    key_basis, key_core = torch.linalg.qr(in_float64(weights.keys).transpose(1, 2))
    left, values, right = torch.linalg.svd(query_core @ key_core.transpose(1, 2))
    return RelationalSubspaces(
        values[:, :k].float(),
        (query_basis @ left[:, :, :k]).float(),
        (key_basis @ right.transpose(1, 2)[:, :, :k]).float(),
    )


@unwrapping
@torch.no_grad()
def composition_scores(model: PreTrainedModel, kind: Kind) -> Tensor:
    """Return how strongly each head reads the output of each earlier head, [L, H, L, H] float32.

    The first two dimensions are layer and head of the writing head, the last two those of the reading head.

    The score is ``norm(R W_OV) / (norm(R) * norm(W_OV))`` with Frobenius norms. W_OV belongs to the writing head, R to
    the reading head: ``W_QK^T`` for ``query``, ``W_QK`` for ``key`` and ``W_OV`` for ``value`` (Q-, K- and
    V-composition). The score is NaN unless the writing layer comes before the reading layer. Heads with random weights
    score about ``1 / sqrt(D)``, not 0: compare heads of the same model. Layers and norms in between are ignored.

    Args:
        model: a causal LM of a supported family.
        kind: ``query``, ``key`` or ``value``, the input through which the later head reads.

    Raises:
        InputError: if ``kind`` is none of these.
        UnsupportedModelError: if the model's family is unknown, or its weights are quantised or adapted.
    """
    check_kind(kind)
    # The layers of a large model may be spread over several devices.
    heads = [head_weights(model, layer).to(input_device(model)) for layer in range(len(anatomy_of(model).layers))]
    n_layers, n_heads = len(heads), text_config(model).num_attention_heads
    scores = torch.full((n_layers, n_heads, n_layers, n_heads), torch.nan)
    written = [grams(layer.output, layer.values) for layer in heads]
    for late, reader in enumerate(heads):
        left, right = reader.reading(kind)
        left_gram, right_gram = grams(left, right)
        read_norm = product_norm(left_gram, right_gram)
        for early in range(late):
            output_gram, value_gram = written[early]
            between = torch.einsum("rwd,ldv->lrwv", right, heads[early].output)  # [H early, H late, W, W]
            inner = (left_gram[None] @ between) * (between @ value_gram[:, None])
            whole = inner.sum(dim=(-1, -2)).clamp_min(0).sqrt()
            scores[early, :, late] = whole / (read_norm[None] * product_norm(output_gram, value_gram)[:, None])
    return scores


def check_kind(kind: str) -> None:
    """Check a kind of composition.

    Raises:
        InputError: if it is not ``query``, ``key`` or ``value``.
    """
    if kind not in get_args(Kind):
        raise InputError(unknown("kind", kind, get_args(Kind)))


def grams(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return A^T A and B B^T of each head, [H, W, W] both, for the factors A [H, D, W] and B [H, W, D] of a circuit."""
    return left.transpose(1, 2) @ left, right @ right.transpose(1, 2)


def product_norm(left_gram: Tensor, right_gram: Tensor) -> Tensor:
    """Return norm(A B) of each head, [H], from A^T A and B B^T: its square is the trace of their product."""
    return (left_gram * right_gram).sum(dim=(-1, -2)).clamp_min(0).sqrt()


def strongest_compositions(scores: Tensor, kind: Kind, k: int = 10) -> list[Composition]:
    """Return the k pairs of heads with the highest composition scores, the highest first.

    Args:
        scores: [L, H, L, H], from ``composition_scores``.
        kind: the kind of these scores.
        k: number of pairs; all if there are fewer.

    Raises:
        InputError: if k is below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one pair")
    values, at = top(scores.flatten(), min(k, int(scores.isfinite().sum())))
    places = torch.stack(torch.unravel_index(at, scores.shape), dim=1).tolist()
    return [
        Composition(early, writer, late, reader, kind, score)
        for (early, writer, late, reader), score in zip(places, values.tolist(), strict=True)
    ]
