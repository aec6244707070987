"""``interpret report``: an HTML page of a run of ``interpret selfie``."""

from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import say
from interpret.records import Interpretation
from interpret.storage import disk, run_folder


def report_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret selfie'; the run may still be in progress.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="HTML file to write; it works without network access.")
    ] = Path("page.html"),
) -> None:
    """Write an HTML page of interpretations: tokens as columns, layers as rows. No model is needed.

    interpret report runs/interpretations
    """
    from interpret.pages.interpretations import interpretation_page

    page = interpretation_page(run_folder.read_rows(run, Interpretation), run_folder.read_manifest(run))
    disk.replace_whole(output, page.encode())
    say(f"{output}: open it in a browser")
