"""The parts of a model: what comes before its decoder layers, the layers, and what comes after them."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import (
    Anatomy,
    anatomy_of,
    check_scores,
    final_modules,
    finished_logits,
    first_layer_input,
    input_device,
    rotation,
    unembedding_size,
    word_embeddings,
)
from interpret.anatomy.passes import foreign_changes
from interpret.device import reuse_freed_memory
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
        return first_layer_input(self.anatomy, embeddings, column)

    def leave(self, states: Tensor) -> Tensor:
        """Return the input of the unembedding for the last layer's outputs: the final norm is applied."""
        return self.end.leave(states)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits for the last layer's outputs, [..., D] -> [..., V], at least float32, on ``device``."""
        return self.end.logits(states)


@dataclass(frozen=True)
class Exit:
    """What comes after a model's layers: final norm and unembedding."""

    model: PreTrainedModel
    final: list[Module]
    """The modules between the last layer and the unembedding."""
    head: Module
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
        logits = finished_logits(self.model, self.head(self.leave(states)))
        return logits.to(self.device, torch.promote_types(logits.dtype, torch.float32))


def exit_of(model: PreTrainedModel) -> Exit:
    """Return what comes after a model's layers.

    Raises:
        UnsupportedModelError: if the model's family is not supported.
    """
    anatomy, head = anatomy_of(model), model.get_output_embeddings()
    return Exit(
        model=model,
        final=[quick(module) for module in final_modules(anatomy)],
        head=quick(head),
        n_logits=unembedding_size(model)[0],
        device=input_device(model),
    )


def trunk_of(model: PreTrainedModel, n_columns: int) -> Trunk:
    """Return the parts of a model, for sequences of up to ``n_columns`` tokens.

    Raises:
        UnsupportedModelError: if the model's family is not supported, or is described without its parts or
            with wrong ones.
    """
    anatomy, embed, device = anatomy_of(model), partial(word_embeddings, model), input_device(model)
    check_scores(model)
    reuse_freed_memory()
    like = first_layer_input(anatomy, embed(torch.zeros(1, 1, dtype=torch.long, device=device)), 0)
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
    own = trunk.anatomy.trunk(inputs_embeds=embeddings.clone(), use_cache=False)[0].float()
    ours = trunk.leave(last).float().to(own.device)
    # With low-precision weights and states, two implementations of attention differ by larger rounding errors.
    full = (torch.float32, torch.float64)
    exact = all(part.dtype in full for part in (embeddings, *trunk.anatomy.trunk.parameters()))
    tolerance = 1e-3 if exact else 0.1
    if (own - ours).norm() > tolerance * own.norm():
        most = int((own - ours).abs().argmax())
        raise UnsupportedModelError(
            f"{type(model).__name__} does not compute what other {trunk.anatomy.family.name} models do: "
            f"running its layers part by part gives a state of {ours.flatten()[most]:.4g}, where the model's own is "
            f"{own.flatten()[most]:.4g}. {_cause(trunk.anatomy)}"
        )


def check_rotation(trunk: Trunk, n_tokens: int) -> None:
    """Check that the first ``n_tokens`` tokens have the same rotary embeddings as in a text of that length.

    Some embeddings depend on the length of the whole text: longrope changes all of them at a certain length.

    Raises:
        UnsupportedModelError: if they do not.
    """
    for index, layer in enumerate(trunk.layers):
        if layer.rotation is None:
            continue
        cosines = layer.rotation[0]
        shorter = rotation(trunk.anatomy, index, cosines, n_tokens)
        if shorter is not None and not torch.equal(shorter[0], cosines[:n_tokens]):
            raise UnsupportedModelError(
                f"{type(trunk.anatomy.trunk).__name__}: a text that grows from {n_tokens} to {len(cosines)} tokens "
                "changes the rotary embeddings of its first tokens (longrope or dynamic scaling), so keys cannot be "
                "reused; ask for fewer new tokens, or use a shorter prompt"
            )


def _cause(anatomy: Anatomy) -> str:
    """Return what probably makes layers compute something else than their parts."""
    for layer, block in enumerate(anatomy.layers):
        for name, module in block.named_modules():
            where = f"layers[{layer}]" + (f".{name}" if name else "")
            if foreign_changes(module):
                return f"A hook on {where} changes what it computes: remove it"
            if not type(module).__module__.startswith(_PLAIN):
                return (
                    f"{where} is a {type(module).__name__}, perhaps an adapter: merge it into the weights, or remove it"
                )
    return (
        "Either its configuration has a setting that is not supported here, or the row of its family names the wrong "
        "parts (docs/architecture.md, 'Describing another family')"
    )


_PLAIN = ("torch.nn.", "transformers.", "bitsandbytes.", "interpret.")
"""Modules that define the classes of which a model consists without adapters."""
