"""The parts of a model: what comes before its decoder layers, the layers, and what comes after them."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import Anatomy, anatomy_of, blank_past, capped, input_device, layer_input, logit_cap
from interpret.anatomy.changes import Changes
from interpret.engine.layers import Layer, layers_of
from interpret.engine.linear import Module, quick
from interpret.errors import UnsupportedModelError


@dataclass(frozen=True)
class Trunk:
    """The parts of one model, for sequences up to a maximum length."""

    anatomy: Anatomy
    embed: Module
    """Token ids -> word embeddings."""
    layers: list[Layer]
    end: "Exit"
    n_logits: int
    """V."""
    device: torch.device
    """Device of the model's input."""

    def enter(self, embeddings: Tensor, column: int = 0) -> Tensor:
        """Return the input of layer 0, [B, N, D], for word embeddings, [B, N, width], from column ``column`` on."""
        return _first_layer_input(self.anatomy, embeddings, column)

    def leave(self, states: Tensor) -> Tensor:
        """Return the input of the unembedding for the last layer's outputs: the final norm is applied."""
        return self.end.leave(states)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits for the last layer's outputs, [..., D] -> [..., V], at least float32, on ``device``."""
        return self.end.logits(states)


@dataclass(frozen=True)
class Exit:
    """What comes after a model's layers: final norm and unembedding."""

    final: list[Module]
    """The modules between the last layer and the unembedding."""
    head: Module
    cap: float | None
    """The c that caps logits x as ``c * tanh(x / c)``; None without a soft cap."""
    n_logits: int
    """V."""
    device: torch.device
    """Device of the model's input."""

    def leave(self, states: Tensor) -> Tensor:
        """Return the input of the unembedding for the last layer's outputs: the final norm is applied."""
        for module in self.final:
            states = module(states)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits for the last layer's outputs, [..., D] -> [..., V], at least float32, on ``device``."""
        logits = capped(self.head(self.leave(states)), self.cap)
        return logits.to(self.device, torch.promote_types(logits.dtype, torch.float32))


def exit_of(model: PreTrainedModel) -> Exit:
    """Return what comes after a model's layers.

    Raises:
        UnsupportedModelError: if the model's family is not supported.
    """
    anatomy, head = anatomy_of(model), model.get_output_embeddings()
    final = [getattr(anatomy.trunk, name, None) for name in anatomy.family.final]
    return Exit(
        final=[quick(module) for module in final if module is not None],
        head=quick(head),
        cap=logit_cap(model),
        n_logits=head.weight.shape[0],
        device=input_device(model),
    )


def trunk_of(model: PreTrainedModel, n_columns: int) -> Trunk:
    """Return the parts of a model, for sequences of up to ``n_columns`` tokens.

    Raises:
        UnsupportedModelError: if the model's family is not supported, or is described without its parts.
    """
    anatomy, embed, device = anatomy_of(model), model.get_input_embeddings(), input_device(model)
    like = _first_layer_input(anatomy, embed(torch.zeros(1, 1, dtype=torch.long, device=device)), 0)
    end = exit_of(model)
    return Trunk(
        anatomy=anatomy,
        embed=embed,
        layers=layers_of(model, anatomy, like, n_columns),
        end=end,
        n_logits=end.n_logits,
        device=device,
    )


def check_trunk(model: PreTrainedModel, trunk: Trunk, embeddings: Tensor, last: Tensor) -> None:
    """Check that running a model part by part gives its own result; adapters or hooks may change that result.

    Args:
        model: the whole model.
        trunk: its parts.
        embeddings: word embeddings of some sequences, [B, T, width].
        last: the last layer's output for them, from running the parts, [B, T, D].

    Raises:
        UnsupportedModelError: if the results differ.
    """
    own = trunk.anatomy.trunk(inputs_embeds=embeddings, use_cache=False)[0].float()
    ours = trunk.leave(last).float().to(own.device)
    # With low-precision weights and states, two implementations of attention differ by larger rounding errors.
    full = (torch.float32, torch.float64)
    exact = all(part.dtype in full for part in (embeddings, *trunk.anatomy.trunk.parameters()))
    tolerance = 1e-3 if exact else 0.1
    if (own - ours).norm() > tolerance * own.norm():
        raise UnsupportedModelError(
            f"{type(model).__name__} does not compute what other {trunk.anatomy.family.name} models do: "
            "running its layers part by part gives a different result. Remove adapters and hooks from its layers"
        )


class _StopError(Exception):
    """Raised before the first layer, to skip the rest of the pass."""


def _first_layer_input(anatomy: Anatomy, embeddings: Tensor, column: int) -> Tensor:
    """Return the input of the first layer: the model's own code prepares a pass, which is stopped before the layer."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(layer_input(args, kwargs))
        raise _StopError

    past = blank_past(len(anatomy.layers), len(embeddings), column, embeddings) if column else None
    with Changes() as change, change, suppress(_StopError):
        change.before(anatomy.layers[0], stop)
        anatomy.trunk(inputs_embeds=embeddings, past_key_values=past, use_cache=False)
    return seen[0]
