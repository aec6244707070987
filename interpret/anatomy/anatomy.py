"""Find the parts of one model with the table row of its family."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from interpret.anatomy.families import FAMILIES, Block, Family, Parts
from interpret.anatomy.releases import check_family_release, check_release, text_settings
from interpret.errors import UnsupportedModelError

_ATTENTION, _MLP = ("attn_in", "attn_out"), ("mlp_in", "mlp_out")
"""The sites that a layer has only with attention, and only with an MLP."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model."""

    family: Family
    trunk: PreTrainedModel
    """The module that runs the layers; it takes ``past_key_values`` and returns the hidden states."""
    layers: Sequence[nn.Module]
    width: int
    """Size D of a hidden state."""
    block: Block

    @property
    def parts(self) -> Parts:
        """The modules inside the attention and the MLP of a layer.

        Raises:
            UnsupportedModelError: if the family is described without its parts.
        """
        if self.family.parts is None:
            settings = _set(self.family.whole_if, self.trunk.config)
            models = f" for models with {' and '.join(settings)}" if settings else ""
            raise UnsupportedModelError(
                f"the family {self.family.name!r} is described without its parts{models}, so its layers cannot be run "
                "part by part, which is required here; docs/architecture.md shows how to describe the parts"
            )
        return self.family.parts

    @property
    def neuron_parts(self) -> Parts:
        """The same, if the MLPs have the modules of one dense MLP; ``anatomy.neurons`` knows mixtures of experts, too.

        Raises:
            UnsupportedModelError: also if the MLPs are run as a whole.
        """
        if not self.parts.down:
            raise UnsupportedModelError(
                f"the MLPs of the family {self.family.name!r} are mixtures of experts, which are run as a whole: they "
                "do not have the modules of one MLP (projections, activation function), which are required here"
            )
        return self.parts

    def has(self, layer: int, site: str) -> bool:
        """Return whether a layer has a site of ``interpret.activations`` that does not need the parts of layers."""
        if site in _ATTENTION:
            return self._attends(layer)
        if site == "mixer_out":
            return bool(self.family.mixer) and not self._attends(layer)
        if site in _MLP:
            return bool(self.family.mlp_last)
        return bool(self.family.mlp_norm or self.family.mlp_first) if site == "resid_mid" else True

    def added(self, layer: int) -> list[str]:
        """Return the sites of what a layer adds to the residual stream, in order."""
        return [site for site in ("attn_out", "mixer_out", "mlp_out") if self.has(layer, site)]

    def module(self, layer: int, site: str) -> nn.Module:
        """Return the module whose output (``attn_out``, ``mixer_out``, ``mlp_out``) or input (others) a site is.

        Raises:
            UnsupportedModelError: if the layer has no such site; the message says what it has instead.
        """
        block, family = self.layers[layer], self.family
        if not self.has(layer, site):
            raise UnsupportedModelError(self._lacks(layer, site))
        normed = family.mlp_norm if self.block == "sequential" else ""
        paths = {
            "attn_in": family.attention,
            "attn_out": family.attention_output,
            "mixer_out": _first_of(family.mixer, block),
            "resid_mid": normed or family.mlp_first,
            "mlp_in": family.mlp_first,
            "mlp_out": family.mlp_last,
        }
        return block.get_submodule(paths[site])

    def check_added(self) -> None:
        """Check that modules write all that the layers add to the residual stream.

        Raises:
            UnsupportedModelError: if they do not; the message names the first layer.
        """
        for layer in range(len(self.layers)):
            if self.has(layer, "resid_mid") or not self.added(layer):
                self.module(layer, "mlp_out")

    def _attends(self, layer: int) -> bool:
        """Return whether a layer has attention; a row that names nothing in its place says that all layers have it."""
        path = self.family.attention_output
        return bool(path) and (not self.family.mixer or _has(self.layers[layer], path))

    def _lacks(self, layer: int, site: str) -> str:
        """Return why a layer does not have a site."""
        family, what = self.family, f"layer {layer} of {type(self.trunk).__name__}"
        if site in _ATTENTION and family.mixer:
            path = _first_of(family.mixer, self.layers[layer])
            mixer = type(self.layers[layer].get_submodule(path)).__name__
            return f"{what} has no attention: in its place is {path!r} ({mixer}), whose output is mixer_out.{layer}"
        if site == "mixer_out" and self._attends(layer):
            return f"{what} has attention, whose output is attn_out.{layer}, and no mixer_out"
        missing = {"mlp_in": "an MLP", "mlp_out": "an MLP", "resid_mid": "an MLP"}.get(site, "attention")
        if site in _MLP and family.mlp_norm:
            return f"{what}: its MLP adds the outputs of several modules, so {site} is not the input or output of one"
        return (
            f"the family {family.name!r} is described without {missing} of its layers, so there is no {site}; the "
            f"residual stream (resid_pre.{layer}, resid_post.{layer}) can be read and edited"
        )


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model, which is a causal LM or its base model.

    Raises:
        UnsupportedModelError: if the model's family or the installed transformers is not supported, or the model does
            not have the family's modules.
    """
    check_release()
    family = _family_of(model)
    try:
        trunk = base_of(model).get_submodule(family.trunk)
        layers = trunk.get_submodule(family.layers)
        config = text_config(model)
        family = _fitted(family, layers[0], config)
        layers[0].get_submodule(family.mlp_last or _first_of(family.mixer, layers[0]))
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not have the modules of other {family.name} models: {error}. "
            "Pass the causal language model or its base model"
        ) from None
    return Anatomy(family, trunk, layers, config.hidden_size, _block(family, config))


Row = TypeVar("Row", Family, Parts)


def _fitted(family: Family, layer: nn.Module, config: Any) -> Family:
    """Return the row of a family with the alternatives that a model has, and without parts if they cannot be run."""
    parts = None if family.parts is None or _set(family.whole_if, config) else _chosen(family.parts, layer)
    chosen = replace(_chosen(family, layer), parts=parts, mixer=family.mixer)
    split = family.mlp_split_if and getattr(config, family.mlp_split_if, None)
    return replace(chosen, mlp_first="", mlp_last="") if split else chosen


def _chosen(row: Row, layer: nn.Module) -> Row:
    """Return a row in which each path with alternatives is the first one that a layer has."""
    paths = {field.name: getattr(row, field.name) for field in fields(row)}
    several = [name for name, path in paths.items() if isinstance(path, str) and "|" in path]
    chosen: dict[str, Any] = {name: _first_of(paths[name], layer) for name in several}
    return replace(row, **chosen)


def _first_of(path: str, layer: nn.Module) -> str:
    """Return the first alternative of a path that a layer has; the first one if it has none."""
    alternatives = path.split("|")
    return next((one for one in alternatives if _has(layer, one)), alternatives[0])


def _has(layer: nn.Module, path: str) -> bool:
    """Return whether a layer has a module."""
    try:
        layer.get_submodule(path)
    except AttributeError:
        return False
    return True


def _set(names: Sequence[str], config: Any) -> list[str]:
    """Return which settings of a configuration are set, with their values."""
    return [f"{name}={getattr(config, name)}" for name in names if getattr(config, name, None)]


def text_config(model: PreTrainedModel) -> Any:
    """Return the configuration of the decoder: ``model.config``, or that of a multimodal model's text part."""
    return base_of(model).config


def text_configs(model: PreTrainedModel) -> list[Any]:
    """Return all configurations that a change of the decoder's settings has to change, each once.

    A multimodal model and its text part may hold copies of one configuration.
    """
    found = (model.config, text_settings(model.config), text_config(model))
    return list({id(config): config for config in found}.values())


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its language-model head; a base model is returned as it is.

    Of a multimodal model, this is the base model of its text part.
    """
    text = _text_part(model)
    if text is not model:
        return base_of(text)
    base = model.base_model
    if base is not model or model.get_output_embeddings() is None:
        return base
    # In transformers 4.57, Gemma 3 looks for its base model under the attribute name of its multimodal models; Llama 4
    # does so in transformers 5, where its decoder is itself, too.
    inner = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    return inner[0] if len(inner) == 1 else model.get_decoder()


def _text_part(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model inside a multimodal model that reads text; any other model is returned as it is."""
    settings = text_settings(model.config)
    if settings is model.config:
        return model
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    return next((part for part in parts if part.config.model_type == settings.model_type), model)


def check_is_model(model: Any) -> None:
    """Check that a model is not hidden in a wrapper, such as that of data parallelism.

    The functions that users call take models out of the wrappers of ``torch.compile`` and PEFT before (``unwrapping``).

    Raises:
        UnsupportedModelError: if it is; the message says what to pass instead.
    """
    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module):
        return
    inner = [name for name, part in model.named_modules() if isinstance(part, PreTrainedModel)]
    if not inner:
        return
    kind = type(model).__name__
    raise UnsupportedModelError(f"{kind} is a wrapper around a model; pass the model itself: model.{inner[0]}")


def check_decoder_only(model: Any) -> None:
    """Check that a model has no encoder, and is not hidden in a wrapper.

    Raises:
        UnsupportedModelError: if it has or is; the message says what to use instead.
    """
    check_is_model(model)
    if isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model. Its predictions can be attributed to tokens "
            "(interpret.attribute, 'interpret attribute'); everything else takes decoder-only models"
        )


def check_uncompiled(model: PreTrainedModel) -> None:
    """Check that no module inside a model was compiled.

    Raises:
        UnsupportedModelError: if one was.
    """
    if any(_is_compiled(part) for part in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__}: it, or a part of it, was compiled in place, and compiled code ignores the "
            "hooks that read and edit states; open the model again, and pass it to the analysis before its parts are "
            "compiled"
        )


def _is_compiled(module: nn.Module) -> bool:
    """Return whether a module was compiled by ``.compile()``, wrapped compiled, or got a compiled ``forward``."""
    forward = vars(module).get("forward")
    replaced = hasattr(forward, "_torchdynamo_orig_callable")
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules or replaced


def _family_of(model: PreTrainedModel) -> Family:
    """Return the table row of a model's family.

    Raises:
        UnsupportedModelError: if the family is not in the table, or needs a later release of transformers.
    """
    check_decoder_only(model)
    name = text_config(model).model_type if isinstance(model, PreTrainedModel) else None
    if name not in FAMILIES:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {name!r}) is not of a supported family; interpret.anatomy.FAMILIES "
            f"lists the {len(FAMILIES)} that are. "
            f"{_found_in(model)}interpret.describe(model) finds the row of many such models; docs/architecture.md, "
            "'Describing another family', shows how to write one in ten lines"
        )
    check_uncompiled(model)
    family = FAMILIES[name]
    check_family_release(f"{type(model).__name__} (model_type {name!r})", family.since)
    return family


def _found_in(model: Any) -> str:
    """Describe the longest module list of a model, which is probably the list of its decoder layers."""
    named = model.named_modules() if isinstance(model, PreTrainedModel) else ()
    lists = [(len(module), name, module) for name, module in named if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        return ""
    count, name, layers = max(lists, key=lambda found: found[0])
    children = ", ".join(f"{child} ({type(module).__name__})" for child, module in layers[0].named_children())
    return f"Its layers are probably {name!r}: {count} x {type(layers[0]).__name__} with {children}. "


def _block(family: Family, config: Any) -> Block:
    if family.parallel_if and getattr(config, family.parallel_if):
        return "parallel"
    if family.post_norm_unless and not getattr(config, family.post_norm_unless):
        return "post_norm"
    return family.block
