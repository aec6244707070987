"""Options shared by several commands."""

import gc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpret.cli.console import say
from interpret.work.extensions import load_extensions, recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = Annotated[str, typer.Option(help="'demo' (SmolLM2-135M-Instruct), a model folder, or a Hugging Face hub id.")]
Output = Annotated[
    Path, typer.Option(help="Run folder for table.csv and manifest.json. The same command resumes a stopped run.")
]


Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        help="Python file that registers your own mediators, attribution methods, probes, step functions or model "
        "families; may be given several times.",
    ),
]


@dataclass(frozen=True)
class Opened:
    """An opened model, and what a run records about the options."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    recorded: dict[str, Any]
    """Keyword arguments ``identity`` and ``circumstances`` of the run functions."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How the model is opened, see ``models.load``, and the extensions to load."""

    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [default: the GPU if there is one]")] = None
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16. [default: as stored in the model folder]")
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(
            help="Instead of --device: distribute a large model over several devices with accelerate; give 'auto'."
        ),
    ] = None
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Quantize the linear layers to 8 bits.")] = False
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantize the linear layers to 4 bits.")] = False
    imports: Imports = None

    def load(self, name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Open a model and its tokenizer.

        Raises:
            ModelError: as ``models.load`` raises.
        """
        from interpret.models.opening import load

        gc.freeze()  # what was imported is never garbage: the collections of from_pretrained need not look at it
        options = asdict(self)
        del options["imports"]
        return load(name, **options, say=say)

    def open(self, name: str) -> Opened:
        """Open a model for a run, as ``load`` does."""
        model, tokenizer = self.load(name)
        of_run: dict[str, Any] = recorded(load_extensions(self.imports or ()))
        of_run["circumstances"]["device_map"] = self.device_map
        return Opened(model, tokenizer, of_run)


@dataclass(frozen=True, kw_only=True)
class FactOptions:
    """Which facts of a file are processed."""

    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Process only this many facts, from the start of the file; the same command with a higher limit "
            "resumes the run.",
        ),
    ] = None
    only_known: Annotated[
        bool, typer.Option("--filter/--no-filter", help="Whether facts that the model does not know are filtered out.")
    ] = True
    rule: Annotated[
        str | None,
        typer.Option(
            help="When a fact counts as known. words: the model's continuation starts with the answer; first_token: "
            "its next token is the whole answer, as in ROME. [default: words]"
        ),
    ] = None
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Make each prompt the user's message of a chat: 'model' for the model's own template, or a text such "
            "as '[INST] {prompt} [/INST]'. [default: prompts are read as they are]",
            show_default=False,
        ),
    ] = None
