"""Write the pages of the reference from the code: public names, commands, tables.

The documentation is built from them (``conf.py``), so no public name, command, option or column is without its place.
They are not kept in the repository.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from sphinx.pycode import ModuleAnalyzer

from interpret.cli.commands import make_app
from interpret.records.table import columns

TABLES = {
    "Interpretation": "`interpret selfie`",
    "TraceCell": "`interpret trace`",
    "TracePeak": "`peaks.csv` of `interpret trace`",
    "TraceAverage": "`averages.csv` of `interpret figures` for a trace",
    "UnitCell": "`units.csv` of `interpret trace`",
    "TokenScore": "`interpret attribute`",
    "MethodComparison": "`interpret attribute --compare`",
    "LocationCell": "`interpret locate`",
    "LocationAverage": "`averages.csv` of `interpret figures` for located facts",
    "FactCell": "`interpret fact`",
    "LensReading": "`interpret probe lens`",
    "LensAverage": "`averages.csv` of `interpret figures` for lenses",
    "LensTraining": "`interpret probe train-lens`",
    "LogitShare": "`interpret probe logits`",
    "HeadView": "`interpret probe heads`",
    "NeuronEffect": "`interpret probe neurons`",
    "Preservation": "`interpret.control.preservation`, one row per fact",
}
"""The records whose fields are the columns of a table, and the table."""


def write_reference(folder: Path, package: ModuleType) -> None:
    """Write the pages into a folder; pages that exist and are equal stay as they are."""
    pages = {f"{name}.md": text for name, text in _python_pages(package)}
    pages["commands.md"] = commands_page()
    pages["tables.md"] = tables_page(package)
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------- Python


def public_packages(package: ModuleType) -> Iterator[ModuleType]:
    """Yield a package and those of its packages and modules that have public names, in the order of their names."""
    yield package
    for name in sorted(package.__all__):
        if inspect.ismodule(getattr(package, name)):
            yield getattr(package, name)


def public_names(module: ModuleType) -> list[str]:
    """Return the public names of a package, without the packages in it, or of a module, sorted."""
    here = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names: list[str] = getattr(module, "__all__", [name for name in here if not name.startswith("_")])
    return sorted((name for name in names if not inspect.ismodule(getattr(module, name))), key=str.lower)


def _python_pages(package: ModuleType) -> Iterator[tuple[str, str]]:
    homes = {module.__name__: public_names(module) for module in public_packages(package)}
    top = homes.pop(package.__name__)
    yield package.__name__, _top_page(package, top, homes)
    for name, names in homes.items():
        module = getattr(package, name.rpartition(".")[2])
        entries = [_entry(module, one) for one in names]
        yield name, "\n\n".join([f"# {name}", _as_markdown(inspect.getdoc(module) or ""), *entries]) + "\n"


def _top_page(package: ModuleType, names: list[str], homes: Mapping[str, list[str]]) -> str:
    """Return the page of the names in the top-level package, each with its package, where it is described."""
    lines = ["# interpret", "", _as_markdown(inspect.getdoc(package) or ""), ""]
    lines += ["| name | described in |", "|---|---|"]
    elsewhere = []
    for name in names:
        found = [home for home, public in homes.items() if name in public]
        if found:
            lines.append(f"| `interpret.{name}` | {{py:obj}}`{found[0]}.{name}` |")
        else:
            elsewhere.append(_entry(package, name))
    return "\n".join([*lines, "", *elsewhere]) + "\n"


def _entry(module: ModuleType, name: str) -> str:
    """Return the directive that shows a public name."""
    value, path = getattr(module, name), f"{module.__name__}.{name}"
    if inspect.isclass(value) and issubclass(value, BaseException):
        lines = [f".. autoexception:: {path}"]
    elif inspect.isclass(value):
        lines = [f".. autoclass:: {path}", "   :members:"]
    elif callable(value):
        lines = [f".. autofunction:: {path}"]
    else:
        lines = [f".. py:data:: {path}", "", *(f"   {line}" for line in _docstring(module, name))]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _docstring(module: ModuleType, name: str) -> list[str]:
    """Return the docstring below the assignment of a public value."""
    home = home_of(module, name)
    return ModuleAnalyzer.for_module(home).find_attr_docs()["", name]


def home_of(module: ModuleType, name: str) -> str:
    """Return the module that assigns a public value, by the stub of the package that exports it."""
    stub = Path(str(module.__file__)).with_suffix(".pyi")
    if not stub.exists():
        return module.__name__
    imports = [line for line in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(line, ast.ImportFrom)]
    (source,) = [line.module for line in imports if name in {alias.name for alias in line.names}]
    return f"{module.__name__}.{source}"


def _as_markdown(text: str) -> str:
    return text.replace("``", "`")


# ------------------------------------------------------------------------------------------------- commands


def commands_page() -> str:
    """Return the page of the commands: of each its help text and a table of its options."""
    app = typer.main.get_command(make_app())
    lines = ["# Commands", ""]
    for name, command in _commands(app, "interpret"):
        lines += [f"## {name}", "", *_help(name, command), ""]
    return "\n".join(lines)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the commands of a group, each with its full name; typer has a click of its own, so types are not asked."""
    if hasattr(command, "commands"):
        for word, one in command.commands.items():
            yield from _commands(one, f"{name} {word}")
    else:
        yield name, command


def _help(name: str, command: Any) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    yield from ["```text", command.get_usage(context), "```", ""]
    yield from [_fenced_examples(command.help or ""), "", "| option | meaning |", "|---|---|"]
    for option in command.get_params(context):
        record = option.get_help_record(context)
        words, meaning = record if record else (option.human_readable_name.upper(), getattr(option, "help", "") or "")
        meaning = meaning.replace("*", r"\*")  # a product is no emphasis
        yield f"| {_cell(f'`{words}`')} | {_cell(meaning)} |"


def _fenced_examples(text: str) -> str:
    r"""Return a help text with its indented examples as code.

    >>> print(_fenced_examples("Trace.\n\n  interpret trace\n\nMore."))
    Trace.
    <BLANKLINE>
    ```sh
    interpret trace
    ```
    <BLANKLINE>
    More.
    """
    parts = []
    for paragraph in text.replace("\b\n", "").split("\n\n"):
        lines = paragraph.splitlines()
        if lines and all(line.startswith((" ", "interpret ")) for line in lines):
            parts.append("\n".join(["```sh", *(line.strip() for line in lines), "```"]))
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") if "`" not in text else _code_cell(text)


def _code_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ------------------------------------------------------------------------------------------------- tables


def tables_page(package: ModuleType) -> str:
    """Return the page of the tables: of each record its fields, which are the columns."""
    lines = ["# Tables", "", "The columns of each table, in order. In Python, a row is a record with the same names."]
    for name, table in TABLES.items():
        of_table = ", ".join(f"`{one}`" for one in columns(getattr(package.records, name)))
        lines += ["", f"## {name}", "", f"Table of {table}. Columns: {of_table}.", ""]
        lines += ["```{eval-rst}", f".. autoclass:: interpret.records.{name}", "   :members:", "   :no-index:", "```"]
    return "\n".join(lines) + "\n"
