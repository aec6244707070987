"""``interpret examples``: write the example files into a folder."""

from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import tell
from interpret.examples import copy_examples


def examples_command(
    *,
    to: Annotated[Path, typer.Option(help="Folder for the files; created if it does not exist.")] = Path("examples"),
) -> None:
    """Write the example files into a folder: prompts, facts, pairs, the settings of a trace, and a notebook.

    interpret examples --to examples

    The examples of the other commands read these files. Files that are there already are left as they are; one that
    differs is an error.
    """
    for file in copy_examples(to):
        tell(str(file))
