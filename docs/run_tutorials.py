"""Run the tutorials and store their outputs in them: ``make notebooks``, or ``python docs/run_tutorials.py NAME ...``.

The site shows the stored outputs, so that it is built without a model. What they were made from is stored with them: a
hash of the code and the version of the package.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

from interpret.storage.provenance import versions

TUTORIALS = sorted((Path(__file__).parent / "tutorials").glob("*.ipynb"))
MADE_FROM = "llm-interpret"
"""The key in a notebook's metadata."""


def made_from(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Return what outputs depend on: a hash of the notebook's code, and the version of the package."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return {"code": hashlib.sha256(code.encode()).hexdigest(), "version": versions()["llm-interpret"]}


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run in an empty folder; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    language = notebook.metadata.language_info.copy()
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=600, record_timing=False, resources=place).execute()
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        # A progress bar that has vanished leaves an empty output.
        cell.outputs = [one for one in cell.outputs if one.get("data", {}).get("text/html") != ""]
    notebook.metadata.language_info = language  # the version of Python would change with every environment
    notebook.metadata[MADE_FROM] = made_from(notebook)
    return notebook


if __name__ == "__main__":
    for tutorial in TUTORIALS:
        if tutorial.stem in sys.argv[1:] or not sys.argv[1:]:
            nbformat.write(executed(tutorial), tutorial)
