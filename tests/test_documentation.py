"""The documents: their code runs, their commands, links and tables are right, and nothing public is left out."""

import io
import re
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import is_dataclass
from pathlib import Path

import nbformat
import pytest
from typer.main import get_command

import interpret
from interpret import records
from interpret.attribution.methods.registry import METHODS
from interpret.cli import make_app
from interpret.probing import PROBES
from interpret.records import columns
from interpret.tracing import MEDIATORS
from reference.house import TOP
from reference.readme import README, blocks, printed

sys.path.insert(0, str(TOP / "docs"))
import reference_pages

DOCS = TOP / "docs"
PAGES = sorted(path for path in [*TOP.glob("*.md"), *DOCS.rglob("*.md")] if path.name != "CHANGELOG.md")
GUIDE_PAGES = sorted(page for page in (DOCS / "guide").glob("*.md") if "```python" in page.read_text(encoding="utf-8"))
"""The pages of the guide with code."""
OTHERS = [DOCS / name for name in ("start/first-result.md", "howto/own-model.md", "howto/own-data.md")]
OTHERS.append(DOCS / "howto/compare-methods.md")
TUTORIALS = sorted(DOCS.rglob("*.ipynb"))
"""Their code is run by docs/run_tutorials.py; tests/test_tutorials.py checks what is stored."""


def text_of(page: Path) -> str:
    """The text of a page; of a notebook, that between the code."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def python_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------------------------------------- code


def test_the_readme_is_a_page():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    assert all(len(code.splitlines()) <= 8 for code, _ in blocks(README.read_text(encoding="utf-8")))


def test_the_readmes_code_prints_what_it_says(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    found = blocks(README.read_text(encoding="utf-8"))
    outputs = list(printed([code for code, _ in found]))
    assert outputs == [text for _, text in found], "run: python tests/reference/readme.py"


@pytest.fixture
def registries():
    """Afterwards the registries hold what they held."""
    kept = [(registry, dict(registry)) for registry in (MEDIATORS, METHODS, PROBES)]
    yield
    for registry, rows in kept:
        registry.clear()
        registry.update(rows)


@pytest.mark.parametrize("page", GUIDE_PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_of_the_guide_runs_by_itself(page, monkeypatch, tmp_path, registries):
    shutil.copytree(TOP / "examples", tmp_path / "examples")  # as "interpret examples" does
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in python_of(page):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_the_code_of_other_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with redirect_stdout(io.StringIO()):
        for block in python_of(page):
            exec(compile(block, page.name, "exec"), names)


def test_all_python_is_run():
    elsewhere = {"README.md", "coming-from.md", "workers.md", "architecture.md", "tracing.md"}
    with_code = {page for page in PAGES if python_of(page)}
    assert {page.name for page in with_code - {*GUIDE_PAGES, *OTHERS}} <= elsewhere


# ------------------------------------------------------------------------------------------------- commands


def commands() -> list[tuple[str, str]]:
    """The lines of shell code that call the command, each with its page."""
    found = []
    for page in [*PAGES, *TUTORIALS]:
        text = text_of(page)
        fenced = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        indented = "\n".join(re.findall(r"^    (interpret .*)$", text, re.MULTILINE))
        for line in f"{fenced}\n{indented}".replace("\\\n", " ").splitlines():
            if re.match(r"\s*interpret \w", line):
                found.append((page.name, line.strip()))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one(page, line):
    words = shlex.split(line, comments=True)[1:]
    command = get_command(make_app())
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    if "..." not in words:
        command.make_context("interpret", words)


# ------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: str(page.relative_to(TOP)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        made = page.parent.name == "reference" or "/reference/" in f"/{path}"
        if path and not path.startswith("http") and not made:
            assert (page.parent / path).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_picture_says_what_it_shows(page):
    for words in re.findall(r"!\[([^\]]*)\]", text_of(page)):
        assert len(words.split()) >= 5, words


# ------------------------------------------------------------------------------------------------- the reference


def test_every_table_is_in_the_reference():
    made = {name for name in records.__all__ if is_dataclass(getattr(records, name))}
    assert {name for name in made if columns(getattr(records, name))} <= {*reference_pages.TABLES}


def test_every_public_name_command_and_option_is_in_the_reference(tmp_path):
    reference_pages.write_reference(tmp_path, interpret)
    text = "\n".join(page.read_text(encoding="utf-8") for page in tmp_path.iterdir())
    for module in reference_pages.public_packages(interpret):
        for name in reference_pages.public_names(module):
            assert f"{module.__name__}.{name}" in text
    page = (tmp_path / "commands.md").read_text(encoding="utf-8")
    for name, command in reference_pages._commands(get_command(make_app()), "interpret"):
        (section,) = re.findall(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        for option in command.params:
            assert all(word in section for word in option.opts), (name, option.opts)


SECTIONS = {
    "interpretations": ["Interpretation"],
    "traces": ["TraceCell"],
    "facts": ["FactCell"],
    "attributions": ["TokenScore", "MethodComparison", "LocationCell"],
    "probes": ["LensReading", "LensAverage", "LensTraining", "LogitShare", "HeadView", "NeuronEffect"],
}


@pytest.mark.parametrize(("page", "record"), [(page, one) for page, found in SECTIONS.items() for one in found])
def test_the_guide_explains_every_column(page, record):
    text = (DOCS / "guide" / f"{page}.md").read_text(encoding="utf-8")
    for name in columns(getattr(records, record)):
        assert re.search(rf"^\|[^|]*`{re.escape(name)}`[^|]*\|", text, re.MULTILINE), name
