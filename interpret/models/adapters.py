"""Open adapters of PEFT: the weights of a few modules beside those of a model, as ``PeftModel.save_pretrained`` writes.

The modules are put into the model that the adapter was trained on. They act there, so the result is used like any other
model. Every weight of the file has to have its place and every new module its weight: PEFT itself only warns, and an
adapter that was not read changes nothing.
"""

import hashlib
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapped
from interpret.errors import ModelError, UnsupportedModelError, brief, named, one_line
from interpret.models.extras import require
from interpret.models.quiet import explained
from interpret.models.safety import ADAPTER, READS_PICKLES, read_object

_SAFE, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_NO_MATTER = {"peft_version", "qalora_group_size"}
"""Settings that later releases of PEFT write and that change nothing by themselves."""
_STATE = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")
"""Attributes of PEFT's modules that say how they act."""


@dataclass(frozen=True)
class Adapter:
    """A folder that holds an adapter."""

    folder: Path
    settings: dict[str, Any]
    """Content of ``adapter_config.json``."""

    @property
    def base(self) -> str:
        """The model that it was trained on: a folder or an id on the hub."""
        name: str = self.settings["base_model_name_or_path"]
        return name

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a tokenizer, which is used in place of that of the model."""
        return (self.folder / "tokenizer_config.json").is_file()


def adapter_in(folder: Path) -> Adapter | None:
    """Return the adapter that a folder holds; None if it holds none.

    Raises:
        ModelError: if it cannot be opened: PEFT is not installed, its model is not named, weights are missing, or it
            needs code or a revision of its model that are not opened here.
    """
    if not (folder / ADAPTER).is_file():
        return None
    settings, what = read_object(folder / ADAPTER), f"{named(folder)!r} is an adapter"
    require("peft", f"{named(folder)!r}, an adapter,")
    if not isinstance(settings.get("base_model_name_or_path"), str) or not settings["base_model_name_or_path"]:
        raise ModelError(f"{what} that does not name its model (base_model_name_or_path in {ADAPTER}): write it there")
    if settings.get("megatron_config"):
        raise ModelError(f"{what} that needs code of its own (megatron_config), which is not run")
    if settings.get("revision") not in (None, "main"):
        revision = brief(settings["revision"])
        raise ModelError(f"{what} of one revision of its model, {revision}: download that into a folder")
    if not (folder / _SAFE).is_file():
        if not (folder / _PICKLED).is_file():
            raise ModelError(f"{what} without its weights: the folder holds neither {_SAFE} nor {_PICKLED}")
        if not READS_PICKLES:
            raise ModelError(
                f"{what} without weights in the safetensors format, and torch {torch.__version__} may run code that "
                "other weight files contain: update torch to 2.6 or newer"
            )
    return Adapter(folder, settings)


def put_adapter_(model: PreTrainedModel, adapter: Adapter) -> None:
    """Put the modules of an adapter into the model that it was trained on, in place.

    Raises:
        ModelError: if the adapter cannot be read, does not fit the model, or does not act within its modules; or if
            weights of the model are offloaded, from where PEFT does not load them.
    """
    import peft

    name = named(adapter.folder)
    if any(part.is_meta for part in model.parameters()):
        raise ModelError(
            f"{name!r} is an adapter, whose model has to stay in memory: give a device_map without offloading"
        )
    with explained(f"cannot open the adapter {name!r}", f"It was trained on {brief(adapter.base)}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapper = peft.get_peft_model(model, _configuration(adapter))
            weights = peft.load_peft_weights(str(adapter.folder), device="cpu")
            made = peft.get_peft_model_state_dict(wrapper, save_embedding_layers=False)
            _check_complete(name, set(weights), set(made), set(wrapper.state_dict()))
            peft.set_peft_model_state_dict(wrapper, weights)
        try:
            unwrapped(wrapper.eval())  # checks that the model includes all of the adapter
        except UnsupportedModelError as error:
            raise ModelError(f"{name!r}: {error}") from None


def _configuration(adapter: Adapter) -> Any:
    """Return PEFT's configuration of an adapter, without settings that a later release added and that are not set.

    Raises:
        ModelError: if a setting is unknown to the installed release.
    """
    import peft

    known = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    kinds = {str(getattr(kind, "value", kind)): configuration for kind, configuration in known.items()}
    kind = kinds.get(str(adapter.settings.get("peft_type")))
    if kind is None:
        raise ModelError(
            f"{named(adapter.folder)!r} is an adapter of the type {brief(adapter.settings.get('peft_type'))}, which "
            f"peft {peft.__version__} does not know"
        )
    names = {field.name for field in fields(kind) if field.init}
    more = {key: value for key, value in adapter.settings.items() if key not in names and key not in _NO_MATTER}
    if unknown := sorted(key for key, value in more.items() if value):
        raise ModelError(
            f"{named(adapter.folder)!r} is an adapter with settings that peft {peft.__version__} does not know: "
            f"{one_line(', '.join(unknown))}. Merge it into its model with the peft that wrote it"
        )
    return kind(**{key: value for key, value in adapter.settings.items() if key in names} | {"inference_mode": True})


def _check_complete(name: str, stored: set[str], wanted: set[str], places: set[str]) -> None:
    """Check that the weights of a file are those of the modules that were put into the model."""
    if missing := sorted(wanted - stored):
        raise ModelError(f"{name!r} does not hold all weights of its adapter: {missing[0]} is missing")
    if unused := sorted(stored - wanted - places):
        raise ModelError(f"{name!r} holds weights that its model has no place for, such as {unused[0]}")


def check_tokens(adapter: Adapter, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model has an embedding for each token of an adapter's tokenizer.

    Raises:
        ModelError: if the model was enlarged for the adapter.
    """
    n_tokens, n_rows = len(tokenizer), model.get_input_embeddings().weight.shape[0]
    if n_tokens > n_rows:
        raise ModelError(
            f"{named(adapter.folder)!r}: its tokenizer has {n_tokens} tokens, its model {brief(adapter.base)} has "
            f"embeddings for {n_rows}: merge the adapter into the enlarged model with peft (merge_and_unload), and "
            "save both the model and the tokenizer"
        )


def adapters_sha256(model: PreTrainedModel) -> str | None:
    """Return a hash of the modules that PEFT put into a model: their weights, and how they act; None without any."""
    found = hashlib.sha256()
    layers = [(name, part) for name, part in model.named_modules() if type(part).__module__.startswith("peft.")]
    for name, layer in layers:
        acting = [(key, str(getattr(layer, key, None))) for key in _STATE]
        found.update(f"{name} {type(layer).__name__} {acting}\n".encode())
        for key, tensor in sorted(layer.state_dict().items()):
            if not key.startswith(("base_layer.", "original_module.")):
                found.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest() if layers else None
