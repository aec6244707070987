"""Reference implementation of RelP: plain autograd through the stock model, in which what is constant is detached.

Nothing is run part by part: every cell is a forward and a backward pass of its own. Norms, activation functions and
softmax are found by their classes, so no formula of a norm and no attention is written here.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from interpret.sweep import Cell
from reference.kinds import L
from reference.knockouts import SOFTMAX
from reference.overlay import decoder_layers
from reference.tiny import eager
from reference.tracing import hooked, recorded

ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")


class _ConstantPatterns(TorchFunctionMode):
    """Detaches what every softmax returns; queries and keys, where torch's own attention is called."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention:
            args = (args[0].detach(), args[1].detach(), *args[2:])
        result = function(*args, **(kwargs or {}))
        return result.detach() if function in SOFTMAX else result


@contextmanager
def rules(model: PreTrainedModel) -> Iterator[None]:
    """Give a model the derivatives of RelP inside the ``with`` block; its outputs stay the same."""
    handles = []
    for module in eager(model).modules():
        if "Norm" in type(module).__name__:
            handles.append(module.register_forward_hook(_constant_scale))
        elif type(module).__module__ in ACTIVATIONS:
            handles.append(module.register_forward_hook(lambda module, args, y: args[0] * (y / args[0]).detach()))
    for mlp in [layer.mlp for layer in decoder_layers(model) if hasattr(layer, "mlp")]:
        parts = dict(mlp.named_children())
        activation = parts.get("act_fn", parts.get("activation_fn"))
        if "gate_proj" in parts:
            handles += [part.register_forward_hook(_half) for part in (activation, parts["up_proj"])]
        elif "gate_up_proj" in parts:
            handles.append(activation.register_forward_hook(_half))
            handles.append(parts["gate_up_proj"].register_forward_hook(_half_of_up))
    with _ConstantPatterns():
        yield
    for handle in handles:
        handle.remove()


def _constant_scale(norm: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    x, bias = args[0], getattr(norm, "bias", None)
    if "RMS" not in type(norm).__name__:
        x = x - x.mean(-1, keepdim=True)
    bias = torch.zeros(()) if bias is None else bias
    return x * ((y - bias) / x).detach() + bias


def _half(module: nn.Module, args: Any, y: Tensor) -> Tensor:
    return (y + y.detach()) / 2


def _half_of_up(module: nn.Module, args: Any, y: Tensor) -> Tensor:
    gate, up = y.chunk(2, dim=-1)
    return torch.cat([gate, _half(module, args, up)], dim=-1)


def relevance_effect(model: PreTrainedModel, base: Tensor, donor: Tensor, cell: Cell, answer: Sequence[int]) -> Tensor:
    """Return the estimated effect of a cell on the logits of an answer, [S]; base and donor are embeddings.

    The restored values are variables, which replace what the layers compute at the cell's token; the outputs of pinned
    modules are constants there.
    """
    good, bad = (recorded(model, run, [cell.site]) for run in (donor, base))
    width = slice(None) if cell.unit is None else _features(model, cell)
    variables: dict[int, Tensor] = {}

    def restore(layer: int, value: Tensor) -> Tensor:
        variables[layer] = bad[layer, cell.site][:, cell.token, width].clone().requires_grad_()
        value = value.clone()
        value[:, cell.token, width] = variables[layer]
        return value

    def pin(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, cell.token] = value[:, cell.token].detach()
        return value

    with ExitStack() as stack:
        stack.enter_context(rules(model))
        for layer in range(cell.start, cell.stop):
            edit = lambda value, layer=layer: restore(layer, value)  # noqa: E731
            stack.callback(hooked(model, layer, cell.site, edit, len(base)).remove)
        for one in cell.pins:
            for layer in range(cell.stop, L):
                stack.callback(hooked(model, layer, one.site, pin, len(base)).remove)
        logits = model(inputs_embeds=base, use_cache=False).logits
        read = sum(logits[:, place, token] for place, token in zip(range(-len(answer), 0), answer, strict=True))
        slopes = torch.autograd.grad(read.sum(), list(variables.values()))
    moves = [(good[layer, cell.site] - bad[layer, cell.site])[:, cell.token, width] for layer in variables]
    return sum((move * slope).sum(-1) for move, slope in zip(moves, slopes, strict=True))


def _features(model: PreTrainedModel, cell: Cell) -> slice:
    assert cell.unit is not None
    width = model.config.hidden_size // model.config.num_attention_heads if cell.site == "heads" else 1
    return slice(cell.unit * width, (cell.unit + 1) * width)
