"""All commands by name. Extensions must be loaded before this module is imported, so that help texts list them."""

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from interpret.cli.attribute import attribute_command
from interpret.cli.check import check_command
from interpret.cli.command import HELP, add_command, clause
from interpret.cli.compare import compare_command
from interpret.cli.console import tell
from interpret.cli.examples import examples_command
from interpret.cli.export import export_command
from interpret.cli.fact import fact_command
from interpret.cli.figures import figures_command
from interpret.cli.lens import train_lens_command
from interpret.cli.locate import locate_command
from interpret.cli.neurons import neurons_command
from interpret.cli.probe import heads_command, lens_command, logits_command, probe_command
from interpret.cli.report import report_command
from interpret.cli.selfie import selfie_command
from interpret.cli.trace import trace_command
from interpret.probing.registry import PROBES as REGISTERED
from interpret.storage import provenance

COMMANDS: Mapping[str, Callable[..., None]] = {
    "selfie": selfie_command,
    "trace": trace_command,
    "attribute": attribute_command,
    "locate": locate_command,
    "fact": fact_command,
    "figures": figures_command,
    "compare": compare_command,
    "export": export_command,
    "report": report_command,
    "check": check_command,
    "examples": examples_command,
}
"""The commands by name."""
PROBES: Mapping[str, Callable[..., None]] = {
    "lens": lens_command,
    "logits": logits_command,
    "heads": heads_command,
    "neurons": neurons_command,
    "train-lens": train_lens_command,
}
"""The commands under ``probe``."""
SHOWN_VERSIONS = ("llm-interpret", "transformers", "torch", "python")
"""What ``--version`` tells; ``interpret check`` tells more."""


def _tell_version(asked: bool) -> None:
    if asked:
        found = provenance.versions()
        tell(", ".join(f"{name} {found[name]}" for name in SHOWN_VERSIONS if name in found))
        raise typer.Exit


def make_app() -> typer.Typer:
    """Return the app of the command ``interpret``, including probes that extensions have registered."""
    own = {name: probe_command(probe) for name, probe in REGISTERED.items() if name not in PROBES}
    made = _app(
        "interpret",
        "Read and edit the hidden states of Hugging Face language models; the weights stay untouched.\n\n"
        "interpret COMMAND --help shows an example and all options of a command.",
        COMMANDS,
    )
    made.callback()(_top)
    made.add_typer(
        _app(
            "probe",
            "Read what the parts of a model compute: lenses, direct logit attribution, heads, neurons.\n\n"
            "interpret probe COMMAND --help shows an example and all options of a probe.",
            {**PROBES, **own},
        )
    )
    return made


def _top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Handle the options that stand before a command."""


def _app(name: str, help_: str, commands: Mapping[str, Callable[..., None]]) -> typer.Typer:
    app = typer.Typer(
        name=name,
        help=help_,
        short_help=clause(help_),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": HELP},
    )
    for word, command in commands.items():
        add_command(app, word, command)
    return app
