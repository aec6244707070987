"""Where things are in a model: one table row for each family, and the call signatures of its layers.

This is the only place that knows the module names of a family. To describe a new family, add a row to
``FAMILIES``; docs/architecture.md says how to find its values.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.errors import UnsupportedModelError

Block = Literal["sequential", "parallel", "post_norm"]
"""How a layer joins its two halves. sequential: the MLP reads the normed sum of input and attention.
parallel: attention and MLP both read the input. post_norm: norms stand after each sum."""


@dataclass(frozen=True)
class Family:
    """The module names of a family; paths start at the module named in the line above."""

    name: str
    """``config.model_type``."""
    trunk: str
    """The module that runs the layers, below ``model.base_model``; "" where they are the same."""
    layers: str
    """The list of decoder layers, below the trunk."""
    attention: str
    """Below a layer."""
    mlp_first: str
    """The module whose input is the MLP's, below a layer."""
    mlp_last: str
    """The module whose output is the MLP's, below a layer."""
    mlp_norm: str
    """The norm before the MLP, below a layer; its input is the residual stream in sequential layers."""
    block: Block = "sequential"
    parallel_if: str = ""
    """The configuration flag that turns the layers parallel, where there is one."""
    post_norm_unless: str = ""
    """The configuration flag that keeps norms before attention and MLP, where there is one."""


def _llama_like(name: str) -> Family:
    return Family(name, "", "layers", "self_attn", "mlp", "mlp", "post_attention_layernorm")


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _llama_like("llama"),
        _llama_like("mistral"),
        Family("gpt2", "", "h", "attn", "mlp", "mlp", "ln_2"),
        Family("gptj", "", "h", "attn", "mlp", "mlp", "ln_1", block="parallel"),
        Family(
            "gpt_neox", "", "layers", "attention", "mlp", "mlp", "post_attention_layernorm",
            parallel_if="use_parallel_residual",
        ),
        Family(
            "opt", "decoder", "layers", "self_attn", "fc1", "fc2", "final_layer_norm",
            post_norm_unless="do_layer_norm_before",
        ),
    )
}  # fmt: skip


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


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model: a causal LM, or its base model.

    Raises:
        UnsupportedModelError: if the model's family has no row, or its row does not fit the model.
    """
    family = family_of(model)
    try:
        trunk = model.base_model.get_submodule(family.trunk)
        layers = trunk.get_submodule(family.layers)
        layers[0].get_submodule(family.mlp_last)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not laid out as other {family.name} models: {error}. "
            "Pass the causal language model, or its base model"
        ) from None
    return Anatomy(family, trunk, layers, model.config.hidden_size, _block(family, model.config))


def family_of(model: PreTrainedModel) -> Family:
    """Return the table row of a model's family.

    Raises:
        UnsupportedModelError: if there is none.
    """
    name = getattr(getattr(model, "config", None), "model_type", None)
    if name not in FAMILIES or not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {name!r}) is of no known family; "
            f"known: {', '.join(FAMILIES)}. docs/architecture.md shows how to describe a new one"
        )
    return FAMILIES[name]


def _block(family: Family, config: Any) -> Block:
    if family.parallel_if and getattr(config, family.parallel_if):
        return "parallel"
    if family.post_norm_unless and not getattr(config, family.post_norm_unless):
        return "post_norm"
    return family.block


def past_length(past_key_values: Any) -> int:
    """Return the number of columns a cache holds; 0 for None.

    In all these families a cache is a tuple over layers of (keys, values), each [B, H, T, D].
    """
    if past_key_values is None or past_key_values[0] is None:
        return 0
    return past_key_values[0][0].shape[-2]


def shared_past(past_key_values: Any, n_columns: int, n_rows: int) -> Any:
    """Return the first columns of a one-row cache for ``n_rows`` rows, without copying; None for no columns."""
    if not n_columns:
        return None
    return tuple(
        tuple(part[:, :, :n_columns].expand(n_rows, -1, -1, -1) for part in layer) for layer in past_key_values
    )


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states [B, T, D] from the arguments of a layer's call."""
    return args[0] if args else kwargs["hidden_states"]


def with_layer_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a layer's call with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its input ids; a model with offloaded parameters takes them on the CPU."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextmanager
def keeping_activations(trunk: PreTrainedModel) -> Iterator[None]:
    """Turn gradient checkpointing off for the time of a ``with`` block.

    It runs layers without a graph, and again in backward, when the hooks of the block are gone: what they
    recorded would have no gradient, and what they edited the gradient of another pass.
    """
    had = getattr(trunk, "gradient_checkpointing", False)
    if not had:
        yield
        return
    trunk.gradient_checkpointing = False
    try:
        yield
    finally:
        trunk.gradient_checkpointing = had


def only_in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a hook from the passes other threads make through the same model."""
    thread = get_ident()
    return lambda *event: hook(*event) if get_ident() == thread else None
