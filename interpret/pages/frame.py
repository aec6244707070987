"""Assemble self-contained HTML pages from templates, styles and scripts.

``base.html`` is the frame of every page, with a content security policy that allows only the page's own style and
script; ``base.css`` holds the common style, light and dark, ``base.js`` the common functions; ``parts.html`` holds
shared template macros. A page has three files in its package: a template that extends ``base.html``, and a style and a
script appended to ``base.css`` and ``base.js``.
"""

import base64
import hashlib
from collections.abc import Iterator
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

HERE = "interpret.pages"
SHARED = ("base.html", "parts.html")
_BUFFERED = 1000
"""Number of template events buffered per piece of the page."""


def page_pieces(package: str, name: str, *, more_style: str = "", **values: Any) -> Iterator[str]:
    """Yield a page in pieces, so that it does not have to fit in memory as a whole.

    Args:
        package: the package whose folder holds the page's files.
        name: the name of the files, without ``.html``, ``.css`` and ``.js``.
        more_style: additional generated CSS rules.
        values: variables of the template, including ``title``; the template may call functions among them. All text is
            escaped, except ``Markup``.
    """

    def template(file: str) -> str:
        return _file(HERE if file in SHARED else package, file)

    style = _file(HERE, "base.css") + _file(package, f"{name}.css") + more_style
    script = _file(HERE, "base.js") + _file(package, f"{name}.js")
    environment = Environment(
        loader=FunctionLoader(template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stream = environment.get_template(f"{name}.html").stream(
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script), **values
    )
    stream.enable_buffering(_BUFFERED)
    for text in stream:
        # A lone surrogate has no UTF-8 encoding; it becomes its escape, which is equivalent inside JSON.
        yield text.encode("utf-8", "backslashreplace").decode("utf-8")


def _hash(text: str) -> str:
    """Return the hash of a script or style, in the form of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
