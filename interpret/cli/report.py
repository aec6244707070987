"""``interpret report``: a page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import say
from interpret.records import Interpretation
from interpret.storage import disk, run_folder


def report_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret selfie'; it may still be growing.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page, one HTML file that needs no network.")
    ] = Path("page.html"),
) -> None:
    """Make a page of a run, to explore in a browser: tokens across, layers down. The model is not needed.

    interpret report runs/interpretations
    """
    from interpret.pages.interpretations import interpretation_page

    page = interpretation_page(run_folder.read_table(run, Interpretation), run_folder.read_manifest(run))
    disk.replace_whole(output, page.encode())
    say(f"{output}: open it in a browser")
