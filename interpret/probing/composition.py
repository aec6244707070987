"""How heads are made, and how much a later head reads of what an earlier one writes, from weights alone.

After Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits". A head is two circuits: whom it looks
at, ``x_q^T W_QK x_k``, and what it carries, ``W_OV x_k``; both are [D, D] of rank W. Weights are taken with the norm's
scale before them folded in, without biases; where positions are rotations, W_QK is that of a token for itself. Norms of
queries and keys (Qwen3, Gemma 3, OLMo 2) and of what the attention adds (Gemma, OLMo 2) are left out. Shapes:
L layers, H heads, D hidden width, W width of a head.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.activations._record import unfused
from interpret.activations.edits import check_index
from interpret.anatomy import Anatomy, anatomy_of, input_device, key_heads
from interpret.device import in_float64
from interpret.errors import InputError, unknown
from interpret.probing.neurons import plain_weight

Kind = Literal["query", "key", "value"]
"""Through what the later head reads."""


@dataclass(frozen=True)
class HeadWeights:
    """The heads of one layer, on its device; heads that share keys and values have them repeated."""

    queries: Tensor
    """[H, W, D] float32, as all here."""
    keys: Tensor
    values: Tensor
    output: Tensor
    """[H, D, W]."""

    def reading(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """Return what the heads read by, R, in two factors [H, D, W] and [H, W, D], whose product it is.

        R is ``W_QK^T`` for ``query``, ``W_QK`` for ``key`` and ``W_OV`` for ``value``.
        """
        return {
            "query": (self.keys.transpose(1, 2), self.queries),
            "key": (self.queries.transpose(1, 2), self.keys),
            "value": (self.output, self.values),
        }[kind]

    def to(self, device: torch.device) -> "HeadWeights":
        """Return them on a device."""
        return HeadWeights(*(getattr(self, part.name).to(device) for part in fields(self)))

    def qk(self, head: int) -> Tensor:
        """Return W_QK of a head, [D, D]: the first index is the token's that looks. Not scaled."""
        return self.queries[head].t() @ self.keys[head]

    def ov(self, head: int) -> Tensor:
        """Return W_OV of a head, [D, D]: what it writes for what it reads."""
        return self.output[head] @ self.values[head]


@dataclass(frozen=True)
class Composition:
    """How much of what one head writes another reads."""

    writing_layer: int
    writing_head: int
    reading_layer: int
    reading_head: int
    kind: str
    """``query``, ``key`` or ``value``."""
    score: float
    """0 for no part; 1 at most."""


def head_weights(model: PreTrainedModel, layer: int) -> HeadWeights:
    """Return the weights of a layer's heads.

    Raises:
        InputError: for a layer outside the model.
        UnsupportedModelError: for a model of no known family, or quantised or adapted weights.
    """
    anatomy, config = anatomy_of(model), model.config
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
    """Return what the norm before the attention multiplies features by, [D]; 1 where it stands behind."""
    parts = anatomy.parts
    if anatomy.block == "post_norm" or not parts.attention_norm:
        return torch.ones(())
    norm: Any = anatomy.layers[layer].get_submodule(parts.attention_norm)
    scale: Tensor | None = getattr(norm, "weight", None)  # some norms have none
    return torch.ones(()) if scale is None else scale.detach().float() + parts.norm_offset


@dataclass(frozen=True)
class RelationalSubspaces:
    """What the heads of a layer look by: ``W_QK = sum over i of values[i] * queries[:, i] keys[:, i]^T``."""

    values: Tensor
    """[H, k] float32, the largest singular values of W_QK, the largest first."""
    queries: Tensor
    """[H, D, k], unit vectors: directions in the token that looks ..."""
    keys: Tensor
    """[H, D, k]: ... and those in the tokens looked at that they are held against. Only pairs have a sign."""


@torch.no_grad()
def relational_subspaces(model: PreTrainedModel, layer: int, k: int = 3) -> RelationalSubspaces:
    """Return the pairs of directions by which the heads of a layer relate tokens: the SVD of each W_QK.

    A head looks from a token with much of ``queries[:, i]`` at tokens with much of ``keys[:, i]``, as strongly as
    ``values[i]`` says. Not scaled; the norm's scale is folded in, as in ``head_weights``.

    Args:
        model: a causal LM of a known family.
        layer: which layer.
        k: pairs of directions a head, W at most.

    Raises:
        InputError: for a layer outside the model, or k not from 1 to W.
        UnsupportedModelError: for a model of no known family, or quantised or adapted weights.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> relational_subspaces(model, 1, k=2).queries.shape
    torch.Size([2, 8, 2])
    """
    weights = head_weights(model, layer)
    rank = min(weights.queries.shape[1:])
    if not 1 <= k <= rank:
        raise InputError(f"k is {k}; W_QK of a head has rank {rank}, so give 1 to {rank}")
    # W_QK is [D, D] of rank W: of Q^T = A B and K^T = C E only B E^T, [W, W], needs the SVD.
    query_basis, query_core = torch.linalg.qr(in_float64(weights.queries).transpose(1, 2))
    key_basis, key_core = torch.linalg.qr(in_float64(weights.keys).transpose(1, 2))
    left, values, right = torch.linalg.svd(query_core @ key_core.transpose(1, 2))
    return RelationalSubspaces(
        values[:, :k].float(),
        (query_basis @ left[:, :, :k]).float(),
        (key_basis @ right.transpose(1, 2)[:, :, :k]).float(),
    )


@torch.no_grad()
def composition_scores(model: PreTrainedModel, kind: Kind) -> Tensor:
    """Return how much each head reads of each earlier one, [L, H, L, H] float32: writing layer and head, then reading.

    With Frobenius norms: ``norm(R W_OV) / (norm(R) * norm(W_OV))``, W_OV the writing head's and R of the reading head
    ``W_QK^T`` for ``query``, ``W_QK`` for ``key`` and ``W_OV`` for ``value``: Q-, K- and V-composition. NaN where the
    writing layer is not before the reading one. Heads of random weights score above 0, about ``1 / sqrt(D)``: compare
    heads of one model with each other. What later layers and norms make of a write is not considered.

    Args:
        model: a causal LM of a known family.
        kind: through what the later head reads.

    Raises:
        InputError: for another kind.
        UnsupportedModelError: for a model of no known family, or quantised or adapted weights.
    """
    check_kind(kind)
    # The layers of a large model may be spread over several devices.
    heads = [head_weights(model, layer).to(input_device(model)) for layer in range(len(anatomy_of(model).layers))]
    n_layers, n_heads = len(heads), model.config.num_attention_heads
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
    """Refuse what heads do not read through.

    Raises:
        InputError: for another kind than ``query``, ``key`` and ``value``.
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
    """Return the k pairs of heads that compose most, the strongest first.

    Args:
        scores: [L, H, L, H], of ``composition_scores``.
        kind: theirs.
        k: how many; all, where they are fewer.

    Raises:
        InputError: for k below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one pair")
    flat = scores.flatten().nan_to_num(-1.0)
    top = flat.topk(min(k, int(scores.isfinite().sum())))
    places = torch.stack(torch.unravel_index(top.indices, scores.shape), dim=1).tolist()
    return [
        Composition(early, writer, late, reader, kind, score)
        for (early, writer, late, reader), score in zip(places, top.values.tolist(), strict=True)
    ]
