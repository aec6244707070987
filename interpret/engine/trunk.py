"""A model taken apart: what stands before its decoder layers, the layers, and what stands after them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import Anatomy, anatomy_of, blank_past, capped, input_device, layer_input, logit_cap
from interpret.anatomy.passes import only_in_this_thread
from interpret.engine.layers import Layer, layers_of
from interpret.engine.linear import Module, quick
from interpret.errors import UnsupportedModelError


@dataclass(frozen=True)
class Trunk:
    """The parts of one model, for sequences up to some length."""

    anatomy: Anatomy
    embed: Module
    """Token ids -> word embeddings."""
    layers: list[Layer]
    end: "Exit"
    n_logits: int
    """V."""
    device: torch.device
    """Where the model takes its input."""

    def enter(self, embeddings: Tensor, column: int = 0) -> Tensor:
        """Return what enters layer 0, [B, N, D], for word embeddings, [B, N, width], that start at a column."""
        return _first_layer_input(self.anatomy, embeddings, column)

    def leave(self, states: Tensor) -> Tensor:
        """Return what the head reads for the last layer's outputs."""
        return self.end.leave(states)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits for the last layer's outputs, [..., D] -> [..., V], float32 at least, where ids are."""
        return self.end.logits(states)


@dataclass(frozen=True)
class Exit:
    """What stands after a model's layers."""

    final: list[Module]
    """Between the last layer and the head."""
    head: Module
    cap: float | None
    """The c by which logits x become ``c * tanh(x / c)``, where there is one."""
    n_logits: int
    """V."""
    device: torch.device
    """Where the model takes its input."""

    def leave(self, states: Tensor) -> Tensor:
        """Return what the head reads for the last layer's outputs."""
        for module in self.final:
            states = module(states)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits for the last layer's outputs, [..., D] -> [..., V], float32 at least, where ids are."""
        logits = capped(self.head(self.leave(states)), self.cap)
        return logits.to(self.device, torch.promote_types(logits.dtype, torch.float32))


def exit_of(model: PreTrainedModel) -> Exit:
    """Find what stands after a model's layers.

    Raises:
        UnsupportedModelError: if the model is of no known family.
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
    """Take a model apart, for sequences of up to ``n_columns`` tokens.

    Raises:
        UnsupportedModelError: if the model is of no known family, or its row does not name the parts of a layer.
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
    """Compare a run made of parts with the model's own: adapters and hooks of others may compute otherwise.

    Args:
        model: the whole.
        trunk: its parts.
        embeddings: word embeddings of some sequences, [B, T, width].
        last: what the last layer made of them when run part by part, [B, T, D].

    Raises:
        UnsupportedModelError: if the two differ.
    """
    own = trunk.anatomy.trunk(inputs_embeds=embeddings, use_cache=False)[0].float()
    ours = trunk.leave(last).float().to(own.device)
    # Rounded weights and states make much of the last digits, which two ways to attend do not share.
    full = (torch.float32, torch.float64)
    exact = all(part.dtype in full for part in (embeddings, *trunk.anatomy.trunk.parameters()))
    tolerance = 1e-3 if exact else 0.1
    if (own - ours).norm() > tolerance * own.norm():
        raise UnsupportedModelError(
            f"{type(model).__name__} does not compute what other {trunk.anatomy.family.name} models do: "
            "its layers, run part by part, give another result. Remove adapters and hooks from its layers"
        )


class _StopError(Exception):
    """Raised before the first layer: what comes after it is not wanted."""


def _first_layer_input(anatomy: Anatomy, embeddings: Tensor, column: int) -> Tensor:
    """Let the model's own code prepare a pass, and stop it where the first layer would begin."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(layer_input(args, kwargs))
        raise _StopError

    past = blank_past(len(anatomy.layers), len(embeddings), column, embeddings) if column else None
    hook = anatomy.layers[0].register_forward_pre_hook(only_in_this_thread(stop), with_kwargs=True)
    with _removed_after(hook), suppress(_StopError):
        anatomy.trunk(inputs_embeds=embeddings, past_key_values=past, use_cache=False)
    return seen[0]


@contextmanager
def _removed_after(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
