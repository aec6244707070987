"""Reference implementation of attention knockout: a full pass of the stock model, with edited attention weights.

A score of -inf before the softmax gives the same weights as a weight of 0 after it and division by the sum of the
others. So this changes what every softmax of the model returns, and needs neither masks nor the module names of a
family. Where a model calls torch's own attention, the weights are computed here.
"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from reference.overlay import decoder_layers

SOFTMAX = (torch.softmax, torch.nn.functional.softmax, Tensor.softmax)


class _Edited(TorchFunctionMode):
    """Sets weights of a token to 0, in the layer that is being run."""

    def __init__(
        self, shape: tuple[int, int], token: int, sources: Collection[int], heads: Mapping[int, Collection[int] | None]
    ) -> None:
        """Take (number of heads, number of tokens), and the arguments of ``knocked_out``."""
        super().__init__()
        self.shape, self.token, self.sources, self.heads = shape, token, sorted(sources), heads
        self.layer: int | None = None
        self.seen: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        result = function(*args, **(kwargs or {}))
        return self.edited(result) if function in SOFTMAX else result

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Return what torch's own attention does, [B, H, T, W], computed step by step."""
        assert dropout_p == 0
        keys, values = (part.repeat_interleave(queries.shape[1] // part.shape[1], 1) for part in (keys, values))
        scores = queries @ keys.transpose(-1, -2) * (queries.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, float("-inf"))
        return self.edited((scores if attn_mask is None else scores + attn_mask).softmax(-1)) @ values

    def edited(self, weights: Tensor) -> Tensor:
        """Return weights without those that are knocked out; what are no attention weights is returned unchanged."""
        n_heads, n_tokens = self.shape
        if self.layer not in self.heads or weights.shape[-1] not in (n_tokens, n_tokens + 1):  # one column for sinks
            return weights
        weights = weights.clone()
        if weights.shape[1:3] == (n_tokens, n_heads):
            rows = weights[:, self.token]  # [B, H, T]
        else:
            rows = weights.view(-1, n_heads, n_tokens, weights.shape[-1])[:, :, self.token]
        chosen = self.heads[self.layer]
        for head in range(n_heads) if chosen is None else sorted(chosen):
            row = rows[:, head]
            row[:, self.sources] = 0
            row /= row.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny)
        self.seen.append(self.layer)
        return weights


def knocked_out(
    model: PreTrainedModel,
    embeddings: Tensor,
    token: int,
    sources: Collection[int],
    heads: Mapping[int, Collection[int] | None],
) -> Tensor:
    """Return the logits, [S, T, V], of runs in which a token does not attend to others.

    Args:
        model: a causal LM.
        embeddings: [S, T, width] word embeddings.
        token: the token that cannot attend.
        sources: the tokens that it cannot attend to.
        heads: the heads of each layer in which it cannot; None for all heads.
    """
    shape = (getattr(model.config, "text_config", model.config).num_attention_heads, embeddings.shape[1])
    edited = _Edited(shape, token, sources, heads)
    with ExitStack() as stack, torch.no_grad():
        for index, layer in enumerate(decoder_layers(model)):
            stack.callback(layer.register_forward_pre_hook(lambda *_, at=index: setattr(edited, "layer", at)).remove)
        with edited:
            logits = model(inputs_embeds=embeddings, use_cache=False).logits
    assert sorted(set(edited.seen)) == sorted(heads), "a layer without attention weights"
    return logits
