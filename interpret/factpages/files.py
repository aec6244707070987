"""Pages of a run folder: one HTML file per fact, and for several facts an index that averages them. No model needed."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from interpret.errors import InputError, RunError
from interpret.factpages.index import index_pieces
from interpret.factpages.page import fact_page_pieces
from interpret.factpages.stored import DETAILS, stored_facts
from interpret.records import FactCell
from interpret.storage.disk import replacing
from interpret.storage.run_folder import read_rows, read_run

INDEX = "index.html"


def write_pages(folder: Path | str, output: Path | str | None = None) -> list[Path]:
    """Draw the page of each fact of a run folder, without its model.

    Args:
        folder: the run folder, written by ``interpret fact`` or ``run``; the run may still be in progress.
        output: for one fact, the HTML file; for several, the folder of ``index.html`` and one file per fact, which is
            created. By default, the name of the run folder, with ``.html`` for one fact.

    Returns:
        The written files, the page or the index first. Existing files are replaced.

    Raises:
        InputError: if the run has no finished fact, or ``output`` is a single file for several facts.
        RunError: if the folder is not such a run, or a file cannot be read or written.

    Example:
        >>> interpret.factpages.write_pages("runs/facts", "pages")  # doctest: +SKIP
    """
    run = read_run(folder, FactCell)
    read_rows(folder, FactCell)  # says why if there are none
    single = run.manifest["counts"]["in"] == 1
    name = Path(folder).resolve().name
    target = Path(output) if output is not None else Path(f"{name}.html" if single else name)
    if single:
        (only,) = stored_facts(run)
        return [_write(target, fact_page_pieces(only.cells, only.details, run.manifest))]
    if target.suffix == ".html":
        raise InputError(f"{target} is one file, and the run has several facts; give a folder, such as {target.stem}")
    try:
        (target / DETAILS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{target}: cannot be created: {error.strerror}") from error
    written = []
    for fact in stored_facts(run):
        written.append(_write(target / page_name(fact.name), fact_page_pieces(fact.cells, fact.details, run.manifest)))
    return [_write(target / INDEX, index_pieces(stored_facts(run), run.manifest, page_address)), *written]


def page_name(name: str) -> str:
    """Return the path of the page of a fact, relative to the index; in a folder, so that none is the index."""
    return f"{DETAILS}/{name}.html"


def page_address(name: str) -> str:
    """Return the address of the page of a fact, relative to the index."""
    return quote(page_name(name))


def _write(path: Path, pieces: Iterator[str]) -> Path:
    with replacing(path) as file:
        file.writelines(piece.encode() for piece in pieces)
    return path
