"""HTML pages in one file that loads nothing: what they have in common, and how one is put together.

``base.html`` is the frame of a page and the policy by which only its own style and script count, ``base.css`` the
look, light and dark, ``parts.html`` what pages show alike. A page is three files of the package it belongs to: a
template that extends ``base.html``, a style that goes on where ``base.css`` ends, and a script.
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
"""Expressions of a template that are written at once."""


def page_pieces(package: str, name: str, *, more_style: str = "", **values: Any) -> Iterator[str]:
    """Yield a page in pieces, so that it need not be held as a whole.

    Args:
        package: the one in whose folder the page's files are.
        name: theirs, before ``.html``, ``.css`` and ``.js``.
        more_style: rules that are written by the program.
        values: of the template, ``title`` among them; functions may be called in it. Text is escaped, whatever it is.
    """

    def template(file: str) -> str:
        return _file(HERE if file in SHARED else package, file)

    style = _file(HERE, "base.css") + _file(package, f"{name}.css") + more_style
    script = _file(package, f"{name}.js")
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
        # A lone surrogate has no UTF-8; it becomes its escape, which within JSON even means the same.
        yield text.encode("utf-8", "backslashreplace").decode("utf-8")


def _hash(text: str) -> str:
    """Name a script or style by its content, as a content security policy does."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
