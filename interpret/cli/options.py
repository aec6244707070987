"""Options that several commands have: each is told once, and means the same everywhere."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpret.cli.console import say
from interpret.work.extensions import load_extensions, recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = Annotated[str, typer.Option(help="'demo' (SmolLM2-135M-Instruct), a model folder, or a hub id.")]
Output = Annotated[Path, typer.Option(help="Run folder: table.csv, manifest.json. The same command continues it.")]


Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        help="Python file of your own that registers mediators, attribution methods, probes, step functions or "
        "families; may be given several times.",
    ),
]


@dataclass(frozen=True)
class Opened:
    """A model as the options asked for it."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    recorded: dict[str, Any]
    """What a run records of the options, ``identity`` and ``circumstances``, as the run functions take them."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is opened, see ``models.load``, and what is imported before."""

    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU is taken if there is one.")] = None
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; as stored in the model if left out.")
    ] = None
    device_map: Annotated[str | None, typer.Option(help="Spread a large model by accelerate, as in 'auto'.")] = None
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Quantize the linear layers to 8 bits.")] = False
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantize the linear layers to 4 bits.")] = False
    imports: Imports = None

    def load(self, name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Open a model and its tokenizer by the model's name.

        Raises:
            ModelError: as ``models.load`` does.
        """
        from interpret.models.opening import load

        options = asdict(self)
        del options["imports"]
        return load(name, **options, say=say)

    def open(self, name: str) -> Opened:
        """Open a model by its name, for a run; as ``load``."""
        model, tokenizer = self.load(name)
        of_run: dict[str, Any] = recorded(load_extensions(self.imports or ()))
        of_run["circumstances"]["device_map"] = self.device_map
        return Opened(model, tokenizer, of_run)


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
