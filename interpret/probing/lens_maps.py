"""Tuned lenses: one affine map per layer, and the folder in which a lens is stored.

The map of layer l takes the state h before the layer to ``h + A h + b``, which final norm and unembedding then read
(Belrose et al. 2023, arXiv 2303.08112, section 3). With A = 0 and b = 0, this is the logit lens. A lens belongs to one
model, at one number format and one release of transformers: the manifest beside the maps names all three.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of, unwrapping
from interpret.errors import InputError, RunError, named, one_line
from interpret.models.identity import model_identity
from interpret.storage import provenance
from interpret.storage.manifest import command_of, read_manifest

LENS_FILE = "lens.safetensors"
"""The maps of a finished lens, in its run folder."""
COMMAND = "probe train-lens"
_OF_MODEL = ("weights", "dtype", "load_in_8bit", "load_in_4bit")
"""What of ``model_identity`` has to be equal: a model may have moved to another folder."""


@dataclass(frozen=True)
class TunedLens:
    """The affine maps of a tuned lens, one per layer."""

    weight: Tensor
    """[L, D, D] float32, the matrices A."""
    bias: Tensor
    """[L, D] float32, the vectors b."""

    def translated(self, layer: int, states: Tensor) -> Tensor:
        """Return ``h + A h + b`` for states before a layer, [..., D], in their dtype; computed in at least float32."""
        h = states.to(torch.promote_types(states.dtype, torch.float32))
        weight, bias = self.weight[layer].to(h), self.bias[layer].to(h)
        return (h + h @ weight.T + bias).to(states.dtype)

    def to_bytes(self) -> bytes:
        """Return the maps in the safetensors format."""
        return save({"weight": self.weight.detach().cpu().contiguous(), "bias": self.bias.detach().cpu().contiguous()})


def untrained(n_layers: int, width: int, device: torch.device | None = None) -> TunedLens:
    """Return the maps that change nothing, with which a lens is the logit lens."""
    return TunedLens(
        torch.zeros(n_layers, width, width, dtype=torch.float32, device=device),
        torch.zeros(n_layers, width, dtype=torch.float32, device=device),
    )


@unwrapping
def load_tuned_lens(model: PreTrainedModel, folder: Path | str) -> TunedLens:
    """Read a tuned lens that ``interpret probe train-lens`` has trained, and check that it belongs to a model.

    Args:
        model: the model, as ``interpret.load`` opens it.
        folder: the run folder of the training.

    Returns:
        The maps, on the CPU.

    Raises:
        InputError: if it was trained for another model, number of layers, width or number format, with another
            release of transformers, or is not finished.
        RunError: if the folder is not the run of a training, or its maps cannot be read.
    """
    _check_belongs(model, folder, lens_manifest(folder)["identity"])
    try:
        tensors = load((Path(folder) / LENS_FILE).read_bytes())
        lens = TunedLens(tensors["weight"], tensors["bias"])
    except (SafetensorError, OSError, KeyError) as error:
        raise RunError(f"{named(Path(folder) / LENS_FILE)} cannot be read: {one_line(error)}; train again") from None
    check_shape(model, lens)
    return lens


def lens_manifest(folder: Path | str) -> dict[str, Any]:
    """Return the manifest of a finished training.

    Raises:
        InputError: if the folder is that of another run, or the training is not finished.
        RunError: if it is not a run folder.
    """
    manifest = read_manifest(folder)
    if command_of(manifest) != COMMAND:
        raise InputError(f"{named(folder)} is not a tuned lens: it is a run of 'interpret {command_of(manifest)}'")
    if manifest["finished"] is None:
        raise InputError(f"{named(folder)}: the training is not finished; the same command resumes it")
    return manifest


def _check_belongs(model: PreTrainedModel, folder: Path | str, identity: dict[str, Any]) -> None:
    """Check that a lens was trained for this model and release of transformers; layers are named first."""
    n_layers = len(anatomy_of(model).layers)
    if identity.get("n_layers") != n_layers:
        raise InputError(
            f"{named(folder)} is a lens of a model with {identity.get('n_layers')} layers; this model has {n_layers}. "
            "Train one for this model"
        )
    own = model_identity(model)
    for key in _OF_MODEL:
        if identity.get(key) != own[key]:
            raise InputError(
                f"{named(folder)} is a lens of another model: {key} is {identity.get(key)}, of this model {own[key]}. "
                "Train one for this model"
            )
    release = provenance.versions().get("transformers")
    if identity.get("transformers") != release:
        raise InputError(
            f"{named(folder)} was trained with transformers {identity.get('transformers')}, and this is {release}, "
            "whose states may differ. Train one with this release"
        )


def check_shape(model: PreTrainedModel, lens: TunedLens) -> None:
    """Check that a lens has a map for the states of each layer of a model.

    Raises:
        InputError: if its number of layers or its width differ.
    """
    anatomy = anatomy_of(model)
    n_layers, width = len(anatomy.layers), anatomy.width
    if lens.weight.shape != (n_layers, width, width) or lens.bias.shape != (n_layers, width):
        raise InputError(
            f"the lens has weights of shape {list(lens.weight.shape)} and biases of shape {list(lens.bias.shape)}; "
            f"this model has {n_layers} layers of width {width}"
        )
