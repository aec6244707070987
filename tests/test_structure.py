"""The shape of the project: who imports whom, what is public, what the README shows, what scripts may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import interpret
from interpret.anatomy import FAMILIES, Family, Parts
from interpret.cli import app
from interpret.records import (
    HeadView,
    Interpretation,
    LensReading,
    LocationCell,
    LogitShare,
    NeuronEffect,
    TokenScore,
    TraceCell,
    columns,
)

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "interpret"
# A package (or module beside them) imports only from levels before its own; docs/architecture.md tells each one's job.
LEVELS = [
    {"errors", "records"},
    {"anatomy", "device", "pages", "prompts", "stats", "storage"},
    {"activations", "drawing", "models"},
    {"engine"},
    {"surgery", "sweep"},
    {"generation", "facts", "control", "probing"},
    {"attribution", "selfie", "tracing"},
    {"bench", "locating"},
    {"figures"},
    {"cli"},
    {"__init__"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def name_of(path: Path) -> str:
    """A module's dotted name."""
    return ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


MODULES = {name_of(path): path for path in modules()}


def room_of(module: str) -> str:
    """The package, or the module beside the packages, that a dotted name lies in."""
    return module.split(".")[1] if "." in module else "__init__"


def own_imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "interpret":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "interpret"}
    return found


IMPORTS = {module: own_imports(path) - {module} for module, path in MODULES.items()}


def test_every_package_has_a_level():
    assert {room_of(module) for module in MODULES} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_levels_before_its_own(module):
    own = room_of(module)
    for room in {room_of(imported) for imported in IMPORTS[module]} - {own}:
        assert LEVEL[room] < LEVEL[own], f"{module} imports {room}, which is not before {own}"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way through a graph that comes back to where it began; empty where there is none."""
    done: set[str] = set()

    def walk(at: str, way: list[str]) -> list[str]:
        if at in way:
            return [*way[way.index(at) :], at]
        if at not in done:
            for following in sorted(graph.get(at, ())):
                if found := walk(following, [*way, at]):
                    return found
        done.add(at)
        return []

    return next((found for start in sorted(graph) if (found := walk(start, []))), [])


def test_no_modules_import_each_other_in_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle(IMPORTS) == []


def test_no_packages_import_each_other_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for module, imported in IMPORTS.items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, imported))
    assert circle({room: others - {room} for room, others in rooms.items()}) == []


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in modules()}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_only_the_command_line_prints():
    for path in modules():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
        assert not printing or path.relative_to(PACKAGE).parts[0] == "cli", path


def test_transformers_is_version_bound_in_two_places_only():
    """What differs between its versions: cache layouts, layer calls and the methods generate is made of."""
    words = re.compile(
        r"past_key_values\[|hidden_states\"\]|greedy_search\(|_prepare_\w+\(|if .*__version__|DynamicCache"
    )
    for path in modules():
        if room_of(name_of(path)) != "anatomy" and path != PACKAGE / "surgery" / "generation.py":
            assert not words.findall(path.read_text()), path


def module_names(of) -> set[str]:
    """The names in a family's row that no other word could be."""
    if isinstance(of, str):
        return {name for name in of.split(".") if "_" in name}
    parts = vars(of).values() if isinstance(of, (Family, Parts)) else of if isinstance(of, tuple) else ()
    return {name for part in parts for name in module_names(part)}


def test_only_the_anatomy_knows_the_modules_of_a_family():
    names = {name for family in FAMILIES.values() for name in module_names(family)}
    assert {"self_attn", "q_proj", "c_attn", "ln_2", "pre_feedforward_layernorm"} <= names
    words = re.compile(rf"\b({'|'.join(names)})\b")
    for path in modules():
        # The demo model is a Llama, written file by file.
        if room_of(name_of(path)) != "anatomy" and path != PACKAGE / "models" / "demo.py":
            assert not words.findall(path.read_text()), path


def test_every_public_name_is_exported_and_documented():
    assert interpret.__all__ == sorted(interpret.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in interpret.__all__:
        assert getattr(interpret, name).__doc__, name
    source = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {alias.name for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(interpret.__all__)


def test_scripts_are_thin():
    for path in (TOP / "scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path


def test_importing_the_package_prints_and_warns_nothing():
    done = subprocess.run([sys.executable, "-c", "import interpret"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def readme_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (TOP / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_code_runs_as_it_stands(monkeypatch, tmp_path):
    blocks = readme_blocks()
    assert len(blocks) >= 2
    monkeypatch.chdir(TOP)
    names: dict[str, object] = {"folder": tmp_path}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def readme_section(title: str) -> str:
    """The text between a heading of the second level and the next."""
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## )", (TOP / "README.md").read_text(), re.M | re.S)
    return section


SECTIONS = [
    ("Interpret your own prompts", Interpretation, ["selfie"]),
    ("Where is a fact?", TraceCell, ["trace", "figures"]),
    ("Which tokens decide?", TokenScore, ["attribute"]),
    ("Which tokens decide?", LocationCell, ["locate"]),
    ("What does each part write?", LensReading, ["probe lens"]),
    ("What does each part write?", LogitShare, ["probe logits"]),
    ("What does each part write?", HeadView, ["probe heads"]),
    ("What does each part write?", NeuronEffect, ["probe neurons"]),
]


@pytest.mark.parametrize(("title", "record", "commands"), SECTIONS)
def test_the_readme_tells_every_column(title, record, commands):
    section = readme_section(title)
    for name in columns(record):
        assert re.search(rf"^\|[^|]*`{re.escape(name)}`[^|]*\|", section, re.MULTILINE), name


@pytest.mark.parametrize(("title", "record", "commands"), SECTIONS)
def test_the_readme_tells_every_option(title, record, commands):
    section = readme_section(title)
    for command in commands:
        found = get_command(app)
        for word in command.split():
            found = found.commands[word]
        for option in found.params:
            for name in (*option.opts, *option.secondary_opts):
                told = f"`{name}" in section or (not name.startswith("--") and f" {name} " in section)
                assert told or name == "--help" or option.param_type_name == "argument", name


def test_the_files_tell_no_machine_and_no_registry():
    tracked = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if name == "tests/test_structure.py" or not (TOP / name).is_file():
            continue
        text = (TOP / name).read_bytes().decode("utf-8", "ignore")
        assert not re.search(r"(?<![\w.])/(root|work|home)/|index-url|--find-links", text), name
