"""``interpret report``: an HTML page of a run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import say
from interpret.storage import disk, run_folder
from interpret.storage.manifest import command_of


def report_command(
    run: Annotated[Path, typer.Argument(help="Run folder of any command; the run may still be in progress.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="HTML file to write; it works without network access. For several facts of 'interpret fact', a folder "
            "of files. [default: the name of the run folder, .html]",
        ),
    ] = None,
) -> None:
    """Write an HTML page of a run: interpretations, traces, attributions, facts or probes. No model is needed.

    interpret report runs/interpretations
    """
    if command_of(run_folder.read_manifest(run)) == "fact":
        from interpret.factpages.files import write_pages

        say(f"{write_pages(run, output)[0]}: open it in a browser")
        return
    pieces, output = _pieces(run), output or Path(f"{run.resolve().name}.html")
    first = next(pieces)  # an error is raised before the file is opened
    with disk.replacing(output) as file:
        file.write(first)
        file.writelines(pieces)
    say(f"{output}: open it in a browser")


def _pieces(run: Path) -> Iterator[bytes]:
    """Yield the page of a run in pieces, with its model and its settings."""
    manifest = run_folder.read_manifest(run)
    if command_of(manifest) == "selfie":
        from interpret.pages.interpretations import interpretation_page
        from interpret.records import Interpretation

        yield interpretation_page(run_folder.read_rows(run, Interpretation), manifest).encode()
        return
    from interpret.cli.results import result_of
    from interpret.display.page import page_of
    from interpret.pages.provenance import leaves, model_name

    view = result_of(run).view()
    settings = {name.replace("_", " "): value for name, value in leaves(manifest["identity"])}
    title = " · ".join(filter(None, [view.title, model_name(manifest)]))
    yield from map(str.encode, page_of(replace(view, title=title, facts=settings | dict(view.facts))))
