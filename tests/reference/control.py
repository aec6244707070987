"""Reference implementation of control: full forward passes of a copy of the model and a plain training loop.

It does not use ``interpret``: it trains the MLP in place inside the copy, and reads the hidden state from the layer's
output by a hook.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reference.overlay import decoder_layers
from reference.tiny import first


def mlp_names(model: PreTrainedModel, layer: int) -> set[str]:
    """Return the parameter names of the MLP in the layer that outputs ``hidden_states[layer]``."""
    block = decoder_layers(model)[layer - 1]
    parts = (block.fc1, block.fc2) if model.config.model_type == "opt" else (block.mlp,)
    wanted = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def state_before_final_norm(model: PreTrainedModel, ids: Sequence[int], layer: int) -> Tensor:
    """Return the output of decoder layer ``layer - 1``, [T, D], from a full forward pass."""
    outputs: list[Tensor] = []
    block = decoder_layers(model)[layer - 1]
    handle = block.register_forward_hook(lambda module, args, output: outputs.append(first(output)[0]))
    try:
        model(torch.tensor([list(ids)]))
    finally:
        handle.remove()
    return outputs[0]


def reference_control(
    model: PreTrainedModel,
    ids: Sequence[int],
    layer: int,
    positions: Sequence[int],
    loss_of: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
) -> tuple[list[float], dict[str, Any], dict[str, Tensor]]:
    """Train a copy of the model; return the losses, the copy's state dict, and the gradients of the first step."""
    model = copy.deepcopy(model)
    names = mlp_names(model, layer)
    trained = {name: parameter for name, parameter in model.named_parameters() if name in names}
    optimizer = torch.optim.Adam(trained.values(), lr=lr)
    losses, gradients = [], {}
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(state_before_final_norm(model, ids, layer)[list(positions)])
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
        optimizer.step()
    with torch.no_grad():
        losses.append(loss_of(state_before_final_norm(model, ids, layer)[list(positions)]).item())
    return losses, model.state_dict(), gradients
