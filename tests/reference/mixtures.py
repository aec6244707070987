"""Reference implementation of MLPs with experts: every expert computes every token, and the router's weights choose.

It does not use ``interpret``. Shapes: N tokens, E experts, K picked for a token, F neurons of each, U neurons, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor | None]
"""Takes the values of all neurons, [N, U]; returns new ones, or None to keep them."""


def forward_with(mlp: Any, edit: Edit) -> Callable[..., Any]:
    """Return a ``forward`` for an MLP with experts, or without any, in which the values of neurons are edited."""
    stock = mlp.forward

    def forward(x: Tensor, *rest: Any) -> Any:
        called: list[tuple[Tensor, ...]] = []
        experts = getattr(mlp, "experts", None)
        handle = experts and experts.register_forward_pre_hook(lambda module, args: called.append(args))
        own = stock(x, *rest)
        if handle:
            handle.remove()
        states, shared = x.reshape(-1, x.shape[-1]), mlp if experts is None else _shared(mlp)
        values = [_of_experts(experts, states, *called[0])] if experts is not None else []
        if shared is not None:
            values_of_shared, down = _dense(shared)
            gate = mlp.shared_expert_gate(states).sigmoid() if hasattr(mlp, "shared_expert_gate") else 1
            values.append(gate * values_of_shared(states))
        before = torch.cat(values, dim=-1)
        after = edit(before)
        after = before if after is None else after
        total = torch.zeros_like(states)
        if experts is not None:
            total = total + _written(experts, after[:, : values[0].shape[1]], called[0])
        if shared is not None:
            total = total + down(after[:, -values[-1].shape[1] :])
        total = total.view(x.shape if not isinstance(own, tuple) else own[0].shape)
        return (total, *own[1:]) if isinstance(own, tuple) else total

    return forward


def _shared(mlp: Any) -> Any:
    names = ("shared_expert", "shared_experts", "shared_mlp")
    return next((getattr(mlp, name) for name in names if getattr(mlp, name, None) is not None), None)


def _dense(mlp: Any) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Return what computes the neurons of an MLP without experts, and its output projection."""
    if hasattr(mlp, "w1"):  # LFM2
        return lambda x: nn.functional.silu(mlp.w1(x)) * mlp.w3(x), mlp.w2
    act = getattr(mlp, "act_fn", None) or mlp.activation_fn
    return lambda x: act(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj


def _weights(experts: Any, called: tuple[Tensor, ...]) -> Tensor:
    """Return the routing weight of every expert at every token, [N, E]; 0 if it was not picked."""
    _, picked, weights = called
    table = weights.new_zeros(len(picked), experts.num_experts)
    return table.scatter(1, picked, weights)


def _of_experts(experts: Any, states: Tensor, *called: Tensor) -> Tensor:
    """Return the values of the experts' neurons, [N, E * F]."""
    if len(called) == 1:  # Llama 4 weighs what its experts read
        packed = torch.einsum(
            "end,edf->enf", called[0].view(experts.num_experts, -1, states.shape[1]), input_weights(experts)
        )
        gate, up = packed.chunk(2, dim=-1)
        return (experts.act_fn(gate) * up).transpose(0, 1).flatten(1)
    packed = torch.einsum("nd,edf->nef", states, input_weights(experts))
    if experts.has_bias:  # GPT-OSS
        packed = packed + experts.gate_up_proj_bias
        gate, up = packed[..., ::2].clamp(max=experts.limit), packed[..., 1::2].clamp(-experts.limit, experts.limit)
        activations = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    else:
        gate, up = packed.chunk(2, dim=-1)
        activations = experts.act_fn(gate) * up
    return (activations * _weights(experts, called)[..., None]).flatten(1)


def _written(experts: Any, values: Tensor, called: tuple[Tensor, ...]) -> Tensor:
    down = experts.down_proj  # [E, F, D], or [E, D, F] if it is stored as a linear layer's
    transposed = len(called) == 1 or experts.is_transposed
    rows = values.view(len(values), experts.num_experts, -1)
    written = torch.einsum("nef,efd->nd" if transposed else "nef,edf->nd", rows, down)
    if len(called) > 1 and experts.has_bias:
        written = written + _weights(experts, called) @ experts.down_proj_bias
    return written


def input_weights(experts: Any) -> Tensor:
    """Return the input weights of gates and neurons, [E, D, 2 F]."""
    transposed = getattr(experts, "is_transposed", True)
    weight: Tensor = experts.gate_up_proj
    return weight if transposed else weight.transpose(1, 2)


def mlp_of(block: nn.Module) -> nn.Module:
    """Return the MLP of a layer of a model with experts."""
    names = ("mlp", "block_sparse_moe", "feed_forward")
    return next(getattr(block, name) for name in names if hasattr(block, name))
