"""The commands: arguments, progress, exit codes. The only package that prints.

Exit codes: 0 all that was asked for is done; 2 something the user can mend, said in one message; 3 done, but some facts
or prompts could not be (they are dropped, and the reasons reported); 130 interrupted.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import typer

from interpret.cli.attribute import attribute_command
from interpret.cli.check import check_command
from interpret.cli.command import add_command, clause
from interpret.cli.compare import compare_command
from interpret.cli.export import export_command
from interpret.cli.figures import figures_command
from interpret.cli.locate import locate_command
from interpret.cli.neurons import neurons_command
from interpret.cli.probe import heads_command, lens_command, logits_command
from interpret.cli.report import report_command
from interpret.cli.selfie import selfie_command
from interpret.cli.trace import trace_command

COMMANDS: Mapping[str, Callable[..., None]] = {
    "selfie": selfie_command,
    "trace": trace_command,
    "attribute": attribute_command,
    "locate": locate_command,
    "figures": figures_command,
    "compare": compare_command,
    "export": export_command,
    "report": report_command,
    "check": check_command,
}
PROBES: Mapping[str, Callable[..., None]] = {
    "lens": lens_command,
    "logits": logits_command,
    "heads": heads_command,
    "neurons": neurons_command,
}


def _app(name: str, help_: str, commands: Mapping[str, Callable[..., None]]) -> typer.Typer:
    app = typer.Typer(
        name=name,
        help=help_,
        short_help=clause(help_),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for word, command in commands.items():
        add_command(app, word, command)
    return app


app = _app(
    "interpret",
    "Open a Hugging Face language model, operate on its hidden states, and close it unchanged.\n\n"
    "interpret COMMAND --help shows an example and all options.",
    COMMANDS,
)
app.add_typer(
    _app(
        "probe",
        "Probe what parts of a model hold and write: the logit lens, shares in a logit, heads, neurons.\n\n"
        "interpret probe COMMAND --help shows an example and all options.",
        PROBES,
    )
)


def main(argv: Sequence[str] | None = None, *, prog_name: str = "interpret") -> None:
    """Run a command line and exit with its code; a user's mistake is one message, never a traceback."""
    # transformers 4.34.0 uses names that torch has since renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*_register_pytree_node.*")
    warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
    app(args=None if argv is None else list(argv), prog_name=prog_name)
