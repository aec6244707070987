"""The pass that ``agreement`` compares with: a model reads two short texts, and what it computes is recorded.

Shapes: 2 texts, T tokens, D hidden width, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import Anatomy, base_of, text_config, text_configs
from interpret.anatomy.calls import input_device, layer_input, longest_text
from interpret.anatomy.changes import Changes
from interpret.anatomy.experts import Mixture
from interpret.anatomy.insides import inputs_inside, outputs_inside
from interpret.anatomy.neurons import has_neurons, mixture_in

_LENGTH = 2
"""T: tokens of each text."""
SHARED = 1
"""How many of them, at the beginning, are the same in both texts."""


def two_texts(model: PreTrainedModel) -> Tensor:
    """Return the ids of two texts, [2, T], without special tokens; they differ from column ``SHARED`` on."""
    size = text_config(model).vocab_size
    settings = [setting for config in text_configs(model) for setting in vars(config).items()]
    special = {value for name, value in settings if name.endswith("token_id") and isinstance(value, int)}
    some = range(1, size, max(1, size // 50))
    usable = [token for token in some if token not in special] or list(range(size))
    chosen = [usable[index * len(usable) // (2 * _LENGTH)] for index in range(2 * _LENGTH)]
    rows = [chosen[:_LENGTH], [*chosen[:SHARED], *chosen[_LENGTH : 2 * _LENGTH - SHARED]]]
    return torch.tensor(rows, device=input_device(model))[:, : longest_text(model)]


def own_result(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the model's own logits, [2, T, V]; of a model without unembedding, its states, [2, T, D]."""
    if model.config.is_encoder_decoder:
        source = ids[:1].expand_as(ids)
        return model(input_ids=source, decoder_input_ids=ids, use_cache=False, return_dict=True).logits
    if model.get_output_embeddings() is None:
        return base_of(model)(input_ids=ids, use_cache=False, return_dict=True)[0]
    return model(input_ids=ids, use_cache=False, return_dict=True).logits


@dataclass
class Recorded:
    """What a model computed in one pass."""

    layers: list[dict[str, Tensor]]
    """The tensors of each layer, by name."""
    singles: list[set[int]] = field(default_factory=list)
    """The ids of the modules that each layer has once."""
    returned: list[Tensor] = field(default_factory=list)
    """What the base model returned each time it was called, [2, T, D]."""
    running: int | None = None
    """The layer that is running: a module that several layers share is recorded for this one."""
    missing: str | None = None
    """The error for a module that the family's row names and a layer does not have."""

    @property
    def states(self) -> Tensor:
        """The states that are unembedded, [2, T, D]."""
        return self.returned[-1]


@contextmanager
def recording(model: PreTrainedModel, anatomy: Anatomy | None) -> Iterator[Recorded]:
    """Record what a model's base and its layers compute in a pass inside the ``with`` block.

    Args:
        model: the model.
        anatomy: its parts; without them, only the states are recorded.
    """
    blocks = [] if anatomy is None else list(anatomy.layers)
    found = Recorded([{} for _ in blocks])
    with Changes() as change, change:

        def keep_returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.returned.append(_first(output))

        change.after(base_of(model), keep_returned)
        for layer, block in enumerate(blocks):
            _record_beginning(change, found, layer, block)
        if anatomy is not None:
            try:
                _record_modules(change, found, anatomy)
            except AttributeError as error:
                found.missing = str(error)
        for layer, block in enumerate(blocks):
            _record_end(change, found, layer, block)
        yield found


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _record_beginning(change: Changes, found: Recorded, layer: int, block: nn.Module) -> None:
    """Record the residual stream before a layer, and after it, before other hooks change the layer's output."""

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.running = layer
        found.layers[layer]["resid_pre"] = layer_input(args, kwargs)

    def written(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if found.running == layer:
            found.layers[layer]["written"] = _first(output)

    change.before(block, begin)
    change.after(block, written, prepend=True)


def _record_end(change: Changes, found: Recorded, layer: int, block: nn.Module) -> None:
    """Record the residual stream after a layer and after other hooks on it; call this last."""

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if found.running == layer:
            found.layers[layer]["resid_post"] = _first(output)
            found.running = None

    change.after(block, end)


def _record_modules(change: Changes, found: Recorded, anatomy: Anatomy) -> None:
    """Record the inputs and outputs of modules inside the layers, with one hook per module.

    Raises:
        AttributeError: if a layer does not have a module.
    """
    for layer, block in enumerate(anatomy.layers):
        once = _in_one_place(block)
        found.singles.append(once)
        inputs, outputs = _recorded_modules(anatomy, layer)
        for module in {id(one): one for one in (*inputs.values(), *outputs.values())}.values():
            taken = [
                name for name, one in inputs.items() if one is module and (name != "resid_mid" or id(module) in once)
            ]
            given = [name for name, one in outputs.items() if one is module]
            _record_module(change, found, layer, module, taken, given, copy=anatomy.family.overwrites_mlp)
        if anatomy.family.experts is not None and has_neurons(anatomy, layer):
            _record_mixture(change, found, layer, mixture_in(anatomy, layer))


def _recorded_modules(anatomy: Anatomy, layer: int) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return the modules of a layer whose inputs, and whose outputs, are recorded, by the names of the tensors."""
    family, block = anatomy.family, anatomy.layers[layer]
    inputs = {"resid_mid": anatomy.module(layer, "resid_mid")} if anatomy.has(layer, "resid_mid") else {}
    outputs = {site: anatomy.module(layer, site) for site in anatomy.added(layer)}
    if family.parts is not None:
        inputs |= {name: block.get_submodule(path) for name, path in inputs_inside(family, family.parts).items()}
        outputs |= {name: block.get_submodule(path) for name, path in outputs_inside(family, family.parts).items()}
    return inputs, outputs


def _record_module(
    change: Changes, found: Recorded, layer: int, module: nn.Module, taken: list[str], given: list[str], *, copy: bool
) -> None:
    """Record the input of a module by the names ``taken``, and its output, or a copy, by the names ``given``."""

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if found.running == layer:
            tensors = found.layers[layer]
            for name in taken:
                tensors[name] = layer_input(args, kwargs)
            for name in given:
                tensors[name] = _first(output).clone() if copy else _first(output)

    change.after(module, keep, with_kwargs=True)


def _record_mixture(change: Changes, found: Recorded, layer: int, mixture: Mixture | None) -> None:
    """Record what the neurons of a mixture of experts write by their values, and what the mixture returns."""

    def keep(by_neurons: Tensor, own: Tensor) -> None:
        if found.running == layer:
            found.layers[layer] |= {"by neurons": by_neurons, "by mixture": own}

    if mixture is not None:
        mixture.compare(change, keep)


def _in_one_place(block: nn.Module) -> set[int]:
    """Return the ids of the modules that a layer has once.

    One in several places, such as an identity, is called with the tensors of all of them.
    """
    places = Counter(id(module) for _, module in block.named_modules(remove_duplicate=False))
    return {module for module, count in places.items() if count == 1}
