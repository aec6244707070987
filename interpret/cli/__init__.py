"""The commands: arguments, progress, exit codes. The only package that prints.

Exit codes: 0 all that was asked for is done; 2 something the user can mend, said in one message; 3 done, but some facts
or prompts could not be (they are dropped, and the reasons reported); 130 interrupted.
"""

import sys
import warnings
from collections.abc import Sequence

import typer
from rich.markup import escape

from interpret.cli.attribute import attribute_command
from interpret.cli.check import check_command
from interpret.cli.common import err
from interpret.cli.compare import compare_command
from interpret.cli.export import export_command
from interpret.cli.figures import figures_command
from interpret.cli.locate import locate_command
from interpret.cli.probe import probe
from interpret.cli.report import report_command
from interpret.cli.selfie import selfie_command
from interpret.cli.trace import trace_command
from interpret.errors import InterpretError

app = typer.Typer(
    name="interpret",
    help="Open a Hugging Face language model, operate on its hidden states, and close it unchanged.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("selfie")(selfie_command)
app.command("trace")(trace_command)
app.command("attribute")(attribute_command)
app.command("locate")(locate_command)
app.add_typer(probe, name="probe")
app.command("figures")(figures_command)
app.command("compare")(compare_command)
app.command("export")(export_command)
app.command("report")(report_command)
app.command("check")(check_command)


def main(argv: Sequence[str] | None = None, *, prog_name: str = "interpret") -> None:
    """Run a command line and exit with its code; a user's mistake is one message, never a traceback."""
    # transformers 4.34.0 uses names that torch has since renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*_register_pytree_node.*")
    warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
    try:
        app(args=None if argv is None else list(argv), prog_name=prog_name)
    except InterpretError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
