"""One model's parts, found by the row of its family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from interpret.anatomy.families import FAMILIES, Block, Family, Parts
from interpret.errors import UnsupportedModelError


@dataclass(frozen=True)
class Anatomy:
    """One model's parts, found."""

    family: Family
    trunk: PreTrainedModel
    """Takes ``past_key_values`` and returns the hidden states."""
    layers: Sequence[nn.Module]
    width: int
    """Size D of a hidden state."""
    block: Block

    @property
    def parts(self) -> Parts:
        """The modules of a layer's two halves.

        Raises:
            UnsupportedModelError: if the family's row does not say.
        """
        if self.family.parts is None:
            raise UnsupportedModelError(
                f"the row of the family {self.family.name!r} has no parts, so its layers are only run whole, and this "
                "needs their halves; docs/architecture.md shows how to describe them"
            )
        return self.family.parts


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model: a causal LM, or its base model.

    Raises:
        UnsupportedModelError: if the model's family has no row, or its row does not fit the model.
    """
    family = _family_of(model)
    try:
        trunk = base_of(model).get_submodule(family.trunk)
        layers = trunk.get_submodule(family.layers)
        layers[0].get_submodule(family.mlp_last)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not laid out as other {family.name} models: {error}. "
            "Pass the causal language model, or its base model"
        ) from None
    return Anatomy(family, trunk, layers, model.config.hidden_size, _block(family, model.config))


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its head; one without a head is its own base model."""
    base = model.base_model
    # Gemma 3 of transformers 4.57 looks for it under the name it has in its models of images.
    return model.get_decoder() if base is model and model.get_output_embeddings() is not None else base


def _family_of(model: PreTrainedModel) -> Family:
    """Return the table row of a model's family.

    Raises:
        UnsupportedModelError: if there is none.
    """
    name = getattr(getattr(model, "config", None), "model_type", None)
    if name not in FAMILIES or not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {name!r}) is of no known family; known: {', '.join(FAMILIES)}. "
            f"{_found_in(model)}docs/architecture.md, 'Describing another family', shows how in ten lines"
        )
    return FAMILIES[name]


def _found_in(model: Any) -> str:
    """Say what the longest list of modules in a model looks like: those are its layers."""
    named = model.named_modules() if isinstance(model, PreTrainedModel) else ()
    lists = [(len(module), name, module) for name, module in named if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        return ""
    count, name, layers = max(lists, key=lambda found: found[0])
    children = ", ".join(f"{child} ({type(module).__name__})" for child, module in layers[0].named_children())
    return f"Its layers seem to be {name!r}: {count} times {type(layers[0]).__name__} with {children}. "


def _block(family: Family, config: Any) -> Block:
    if family.parallel_if and getattr(config, family.parallel_if):
        return "parallel"
    if family.post_norm_unless and not getattr(config, family.post_norm_unless):
        return "post_norm"
    return family.block
