"""Options shared by several commands."""

import gc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpret.cli.console import say
from interpret.work.extensions import load_extensions, recorded
from interpret.workers.settings import START_TIMEOUT, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interpret.models.opening import Opening

Model = Annotated[str, typer.Option(help="'demo' (SmolLM2-135M-Instruct), a model folder, or a Hugging Face hub id.")]
Output = Annotated[
    Path, typer.Option(help="Run folder for table.csv and manifest.json. The same command resumes a stopped run.")
]


def output_option(name: str, files: str = "table.csv and manifest.json") -> Any:
    """Return the option ``--output`` of a command that takes a prompt or a file."""
    return typer.Option(
        help=f"Run folder for {files}. The same command resumes a stopped run. [default: runs/{name}; for --prompt, "
        f"runs/{name}- and its words]",
        show_default=False,
    )


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
    """A model for a run, and what a run records about the options."""

    model: "PreTrainedModel | Opening"
    """The opened model; with workers, how they open it."""
    tokenizer: "PreTrainedTokenizerBase | None"
    """Its tokenizer; with workers None."""
    recorded: dict[str, Any]
    """Keyword arguments ``workers``, ``identity`` and ``circumstances`` of the run functions."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many processes do the units of a run, and where; None for the value in a configuration file, or a default."""

    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes that open the model and share the work; the result is the same. Needs ray. "
            "[default: 1, this process]",
            show_default=False,
        ),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Where the workers are: 'auto' for the Ray cluster that this machine belongs to, or HOST:PORT. "
            "[default: on this machine]",
            show_default=False,
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            help="Number of GPUs of each worker, such as 2 with --device-map auto, or a fraction such as 0.5. "
            "[default: 1, if there are GPUs]",
            show_default=False,
        ),
    ] = None
    start_timeout: Annotated[
        float | None,
        typer.Option(
            help=f"Seconds to wait for the first worker to open the model. [default: {START_TIMEOUT:g}]",
            show_default=False,
        ),
    ] = None

    def asked(self, imports: list[Path] | None = None, **configured: Any) -> Workers:
        """Return the workers that are asked for.

        Args:
            imports: the files of ``--import``.
            configured: values of a configuration file; options replace them.

        Raises:
            InputError: if a value is invalid.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        values = configured | given
        count = values.pop("workers", 1)
        return Workers(count, **values, imports=tuple(str(file.absolute()) for file in imports or ()))


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
        return load(name, **self._arguments(), say=say)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of ``models.load``."""
        options = asdict(self)
        del options["imports"]
        return options

    def open(self, name: str, workers: Workers) -> Opened:
        """Open a model for a run, as ``load`` does; with workers, only they open it."""
        from interpret.models.opening import Opening

        of_run: dict[str, Any] = recorded(load_extensions(self.imports or ()))
        of_run["circumstances"]["device_map"] = self.device_map
        of_run["workers"] = workers
        if not workers.in_process:
            return Opened(Opening(name, **self._arguments()), None, of_run)
        return Opened(*self.load(name), of_run)


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
