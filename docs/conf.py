"""Settings of Sphinx for the documentation; ``make docs`` builds it into runs/docs without a network."""

import sys
from pathlib import Path
from shutil import copytree

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from reference_pages import write_reference  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import interpret  # noqa: E402
from interpret.storage.provenance import versions  # noqa: E402

project = "llm-interpret"
author = "the authors of llm-interpret"
release = versions()["llm-interpret"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md"]

# Docstrings are written in the style of Google, with types in the signature.
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# The tutorials are shown as they are stored; `make notebooks` runs them.
nb_execution_mode = "off"
smartquotes = False  # options and quotation marks can be copied
suppress_warnings = ["ref.python", "misc.highlighting_failure"]

html_theme = "furo"
html_title = f"llm-interpret {release}"
html_static_path: list[str] = []
html_copy_source = False


def not_a_type(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading the beginning of an attribute's docstring, up to a colon, as its type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def copy_gallery(app: Sphinx, error: Exception | None) -> None:
    """Copy the pages of facts, which are whole HTML files, to the same place as beside the sources."""
    if error is None and app.builder.format == "html":
        copytree(HERE / "gallery", Path(app.outdir) / "gallery", dirs_exist_ok=True)


def setup(app: Sphinx) -> None:
    """Connect what has to happen before napoleon reads docstrings, and after all pages are written."""
    app.connect("autodoc-process-docstring", not_a_type, priority=100)
    app.connect("build-finished", copy_gallery)


write_reference(HERE / "reference", interpret)
