"""Options that several commands have: each is told once, and means the same everywhere."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.cli.console import say
from interpret.models.opening import load
from interpret.storage import provenance

Model = Annotated[str, typer.Option(help="'demo' (SmolLM2-135M-Instruct), a model folder, or a hub id.")]
Output = Annotated[Path, typer.Option(help="Run folder: table.csv, manifest.json. The same command continues it.")]


@dataclass(frozen=True)
class Opened:
    """A model as the options asked for it, and what a manifest tells of that."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    """Which model and weights, and how their numbers are kept."""
    circumstances: dict[str, Any]
    """Versions and device."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is opened; see ``models.load``."""

    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU is taken if there is one.")] = None
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; as stored in the model if left out.")
    ] = None
    device_map: Annotated[str | None, typer.Option(help="Spread a large model by accelerate, as in 'auto'.")] = None
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Quantize the linear layers to 8 bits.")] = False
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantize the linear layers to 4 bits.")] = False

    def load(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Open a model and its tokenizer by the model's name.

        Raises:
            ModelError: as ``models.load`` does.
        """
        return load(name, **asdict(self), say=say)

    def open(self, name: str) -> Opened:
        """Open a model by its name, for a run; as ``load``."""
        model, tokenizer = self.load(name)
        identity = {
            "model": name,
            "weights": weights(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "load_in_8bit": self.load_in_8bit,
            "load_in_4bit": self.load_in_4bit,
        }
        place = {"device": str(model.device), "device_map": self.device_map}
        return Opened(model, tokenizer, identity, {"versions": provenance.versions(), **place})


def weights(model: PreTrainedModel) -> str:
    """Tell which weights these are: the hash of a folder's files or of a GGUF file, or the commit on the hub."""
    folder = Path(model.config._name_or_path)
    if folder.is_file():
        return f"sha256 {provenance.file_sha256(folder)}"
    return f"sha256 {provenance.weights_sha256(folder)}" if folder.is_dir() else f"commit {model.config._commit_hash}"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which facts of a file are done."""

    limit: Annotated[
        int | None, typer.Option(min=1, help="Do the first facts only; a higher limit continues the run.")
    ] = None
    only_known: Annotated[
        bool, typer.Option("--filter/--no-filter", help="Drop the facts the model does not know.")
    ] = True
    rule: Annotated[
        str | None,
        typer.Option(
            help="words: what the model writes starts with the answer's words; or first_token, as in ROME. "
            "[default: words]"
        ),
    ] = None
