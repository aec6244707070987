"""The neurons of a layer, of MLPs of every kind: how many there are, and hooks that read and edit their values.

The value of a neuron is what its output weights are multiplied by: its activation, and in a mixture of experts the
routing weight of its expert times its activation (``experts``).
"""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interpret.anatomy.anatomy import Anatomy
from interpret.anatomy.calls import layer_input, with_layer_input
from interpret.anatomy.changes import Changes
from interpret.anatomy.experts import Mixture, NeuronNumbers, See, mixture_of
from interpret.errors import UnsupportedModelError


def mixture_in(anatomy: Anatomy, layer: int) -> Mixture | None:
    """Return the MLP of a layer of a model with experts; None for a model without.

    Raises:
        UnsupportedModelError: if the neurons of its experts cannot be read.
    """
    names = anatomy.family.experts
    if names is None:
        return None
    where = f"the MLP of layer {layer} of {type(anatomy.trunk).__name__}"
    return mixture_of(anatomy.module(layer, "mlp_in"), names, where)


def neuron_numbers(anatomy: Anatomy, layer: int) -> NeuronNumbers:
    """Return how the neurons of a layer are numbered.

    Raises:
        UnsupportedModelError: if the neurons cannot be read.
    """
    if mixture := mixture_in(anatomy, layer):
        return mixture.numbers
    parts = anatomy.neuron_parts
    up: Any = anatomy.layers[layer].get_submodule(parts.up)
    outputs = int(up.nf if isinstance(up, Conv1D) else up.out_features)
    return NeuronNumbers(0, 0, outputs // 2 if parts.gate == parts.up else outputs)


def has_neurons(anatomy: Anatomy, layer: int) -> bool:
    """Return whether the neurons of a layer can be read."""
    if anatomy.family.experts is None:
        return anatomy.family.parts is not None and bool(anatomy.parts.down)
    try:
        mixture_in(anatomy, layer)
    except UnsupportedModelError:
        return False
    return True


def hook_neurons(change: Changes, anatomy: Anatomy, layer: int, see: See, *, first: bool = False) -> None:
    """Call ``see`` with the values of the neurons of a layer in each pass, and use those that it returns.

    Args:
        change: the changes that the hooks belong to.
        anatomy: the model's parts.
        layer: index of the layer.
        see: is called with the values, [..., U], of all tokens in order.
        first: do this before other hooks, so that these see the new values.

    Raises:
        UnsupportedModelError: if the neurons cannot be read.
    """
    if mixture := mixture_in(anatomy, layer):
        mixture.hook(change, see, first=first)
        return

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = see(layer_input(args, kwargs))
        return None if new is None else with_layer_input(args, kwargs, new)

    change.before(anatomy.layers[layer].get_submodule(anatomy.neuron_parts.down), on_input, first=first)


def run_mlp(anatomy: Anatomy, layer: int, x: Tensor, see: See | None) -> Tensor:
    """Run the MLP of a layer as one module.

    Args:
        anatomy: the model's parts.
        layer: index of the layer.
        x: the normed input of the MLP, [B, N, D].
        see: as for ``hook_neurons``; None if neither the values of its neurons are read nor replaced.

    Returns:
        What the module returns, [B, N, D] or [B * N, D].

    Raises:
        UnsupportedModelError: if ``see`` is given, and the neurons cannot be read.
    """
    with Changes() as change, change:
        if see is not None:
            hook_neurons(change, anatomy, layer, see)
        output = anatomy.module(layer, "mlp_in")(x)
    return output[0] if isinstance(output, tuple) else output
