"""The parts of layers and the modules inside, as a family's row names them, compared with what a model computes.

``agreement`` asks for it, with what ``agreement_pass`` recorded. Shapes: 2 texts, T tokens, D hidden width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.agreement_pass import Recorded
from interpret.anatomy.anatomy import Anatomy, text_config
from interpret.anatomy.difference import apart
from interpret.anatomy.failures import FAILURES, failure
from interpret.anatomy.insides import Comparison, attending, inputs_inside, inside, outputs_inside
from interpret.anatomy.passes import foreign_changes
from interpret.anatomy.vocabulary import residual_factor


def kind_of(model: PreTrainedModel) -> str:
    """Return how messages call a model: its class and its model type."""
    return f"{type(model).__name__} (model_type {text_config(model).model_type!r})"


def row_of(model: PreTrainedModel) -> str:
    """Return how messages call the row of a model's family."""
    return f"the row of the family {text_config(model).model_type!r}"


# ------------------------------------------------------------------------------------------------ attention and MLP


def problem_of_parts(model: PreTrainedModel, exact: bool, anatomy: Anatomy, seen: Recorded) -> str | None:
    """Return why the outputs of attention and MLP do not add up to the residual stream; None if they do.

    Args:
        model: the model.
        exact: as for ``apart``.
        anatomy: the model's parts.
        seen: what the layers computed.
    """
    if seen.missing is not None:
        return f"{row_of(model)} names a module that its layers do not have: {seen.missing}"
    for layer, (block, tensors) in enumerate(zip(anatomy.layers, seen.layers, strict=True)):
        before = tensors["resid_pre"]
        if before.shape[:2] != seen.states.shape[:2]:
            return (
                f"{type(model).__name__}: layer {layer} reads a state of shape {list(before.shape)} for texts of shape "
                f"{list(seen.states.shape[:2])}, so that its states are not those of the tokens"
            )
        added = anatomy.added(layer)
        for name in (*added, "resid_mid"):
            value = tensors.get(name)
            if name == "resid_mid" and value is None:
                continue
            if value is None or value.numel() != before.numel():
                given = "is not computed" if value is None else f"has shape {list(value.shape)}"
                return (
                    f"{type(model).__name__}: in layer {layer}, {name} {given}, where the residual stream has shape "
                    f"{list(before.shape)}; {row_of(model)} names the wrong module"
                )
        for what, total, shares, expected in _sums(anatomy, added, block, tensors):
            figures = apart(exact, total, expected, size=shares)
            if figures is not None:
                cause = f"{row_of(model)} has to name the modules that write them, and residual_scale"
                return (
                    f"{type(model).__name__}: in layer {layer}, {what} is {figures[0]:.4g}, where the model has "
                    f"{figures[1]:.4g}; {cause}{_scales(model)}"
                )
    return None


def _sums(
    anatomy: Anatomy, added: Sequence[str], block: nn.Module, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield each sum of a layer: its name, its value, what is added, and the value the model has, [2, T, D] each.

    Args:
        anatomy: the model's parts.
        added: the names of the tensors that the layer adds; none, if the row of the family names none.
        block: the layer.
        tensors: what it computed.
    """
    expected = tensors["written"]
    before = tensors["resid_pre"].to(expected)  # a layer's input may come from another device
    factor = residual_factor(anatomy)
    shares = [tensors[name].reshape(before.shape).to(before) * factor for name in added]
    middle = tensors["resid_mid"].reshape(before.shape).to(expected) if "resid_mid" in tensors else None
    if anatomy.block == "parallel" or (middle is None and anatomy.block == "sequential"):
        if shares:
            yield " + ".join(["resid_pre", *added]), before + sum(shares), torch.stack(shares).sum(0), expected
        return
    if middle is None:
        return
    first = before + shares[0]
    if anatomy.block == "post_norm":  # a norm follows each sum
        parts = anatomy.family.parts
        first = middle if parts is None else block.get_submodule(parts.attention_norm)(first)
    yield f"resid_pre + {added[0]}", first, shares[0], middle
    if "mlp_out" not in added:  # the MLP adds the outputs of several modules
        return
    second = middle + shares[1]
    if anatomy.block == "post_norm":
        second = block.get_submodule(anatomy.family.mlp_norm)(second)
    yield "resid_mid + mlp_out", second, shares[1], expected


def _scales(model: PreTrainedModel) -> str:
    """Name the settings of a model that look like factors on the residual stream."""
    settings = vars(text_config(model)).items()
    said = ", ".join(f"{name}={value}" for name, value in settings if "residual" in name or name.endswith("multiplier"))
    return f" (its configuration has {said})" if said else ""


# ------------------------------------------------------------------------------------------------ the modules inside


@dataclass(frozen=True)
class _Layer:
    """One layer and what it computed, on its device."""

    number: int
    block: nn.Module
    tensors: Mapping[str, Tensor]


def problems_inside(
    model: PreTrainedModel, exact: bool, anatomy: Anatomy, seen: Recorded
) -> tuple[str | None, str | None]:
    """Return why the modules inside are not those of the family's row, and why heads do not attend as it says.

    Args:
        model: the model.
        exact: as for ``apart``.
        anatomy: the model's parts; its family has ``parts``.
        seen: what the layers computed.

    Returns:
        Two problems; each is None if there is none. What is wrong inside is wrong for the attention, too.
    """
    layers = list(_comparable(anatomy, seen))
    insides = _problem_of_modules(model, exact, anatomy, layers, inside)
    return insides, insides or _problem_of_modules(model, exact, anatomy, layers, attending)


def problem_of_mixtures(model: PreTrainedModel, exact: bool, anatomy: Anatomy, seen: Recorded) -> str | None:
    """Return why the values of experts' neurons do not give what the mixtures return; None if they do."""
    for layer, (block, tensors) in enumerate(zip(anatomy.layers, seen.layers, strict=True)):
        if "by neurons" not in tensors or any(foreign_changes(part) for part in block.modules()):
            continue  # a hook between two modules changes what one gets from the other
        figures = apart(exact, tensors["by neurons"], tensors["by mixture"])
        if figures is not None:
            return (
                f"{kind_of(model)}: in layer {layer}, what the neurons of its experts write is {figures[0]:.4g}, where "
                f"the model has {figures[1]:.4g}; its experts compute something else than those of other models, or "
                "the row of its family names the wrong modules (experts)"
            )
    return None


def _comparable(anatomy: Anatomy, seen: Recorded) -> Iterator[_Layer]:
    """Yield the layers in which what one module computes follows from what others do."""
    for number, block in enumerate(anatomy.layers):
        if any(foreign_changes(part) for part in block.modules()):
            continue  # a hook between two modules changes what one gets from the other
        if not all(id(part) in seen.singles[number] for part in _compared_modules(anatomy, block)):
            continue
        device = next((parameter.device for parameter in block.parameters()), torch.device("cpu"))
        if device.type == "meta":  # offloaded weights are only there while their module is called
            continue
        yield _Layer(number, block, {name: value.to(device) for name, value in seen.layers[number].items()})


def _compared_modules(anatomy: Anatomy, block: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a layer whose inputs or outputs are compared."""
    for path in {anatomy.family.mlp_norm, *_paths(anatomy).values()}:
        with suppress(AttributeError):  # a row that names a module that does not exist is refused with its own message
            if path:
                yield block.get_submodule(path)


def _paths(anatomy: Anatomy) -> dict[str, str]:
    """Return the paths of the modules of a layer whose inputs or outputs are recorded for a comparison, by name."""
    return inputs_inside(anatomy.family, anatomy.parts) | outputs_inside(anatomy.family, anatomy.parts)


def _problem_of_modules(
    model: PreTrainedModel,
    exact: bool,
    anatomy: Anatomy,
    layers: list[_Layer],
    compared: Callable[[Anatomy, int, nn.Module, Mapping[str, Tensor]], Iterator[Comparison]],
) -> str | None:
    """Return a problem with the modules that the parts of the family's row name."""
    kind, paths = kind_of(model), _paths(anatomy)
    for layer in layers:
        if uncalled := [path for name, path in paths.items() if name not in layer.tensors]:
            return (
                f"{type(model).__name__} does not call the module {uncalled[0]!r} of layer {layer.number}, which "
                f"{row_of(model)} names; was it loaded with pretraining_tp above 1?"
            )
        try:
            for what, named, ours, theirs in compared(anatomy, layer.number, layer.block, layer.tensors):
                figures = apart(exact, ours.reshape(theirs.shape), theirs)
                if figures is not None:
                    return (
                        f"{kind}: in layer {layer.number}, {what} is {figures[0]:.4g}, where the model has "
                        f"{figures[1]:.4g}; the row of its family names the wrong parts ({named})"
                    )
        except FAILURES as error:
            return (
                f"{kind}: the row of its family names the wrong parts, which do not fit together in layer "
                f"{layer.number} ({failure(error)})"
            )
    return None
