"""Attention masks: which tokens each token attends to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interpret.engine.layers import Layer


def masks_for(layers: Sequence[Layer], n_tokens: int, n_past: int, like: Tensor) -> list[Tensor]:
    """Return the mask of each layer (see ``mask_for``); layers with the same window share one."""
    masks = {window: mask_for(n_tokens, n_past, window, like) for window in {layer.window for layer in layers}}
    return [masks[layer.window] for layer in layers]


def mask_for(n_tokens: int, n_past: int, window: int | None, like: Tensor) -> Tensor:
    """Return the mask added to attention scores, [N, P + N]: 0 where a token attends to another, -inf elsewhere.

    Args:
        n_tokens: number N of tokens computed.
        n_past: number P of tokens before them.
        window: how many earlier tokens a token attends to; None if the number is not limited.
        like: a tensor on the wanted device.
    """
    asking = torch.arange(n_past, n_past + n_tokens, device=like.device)[:, None]
    distance = asking - torch.arange(n_past + n_tokens, device=like.device)
    unseen = distance < 0
    if window is not None:
        unseen = unseen | (distance > window)
    return torch.zeros(unseen.shape, device=like.device).masked_fill(unseen, float("-inf"))
