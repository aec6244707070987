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
# A module imports only from layers strictly below its own; docs/architecture.md tells each module's job.
LAYERS = [
    {"errors", "passes", "precision", "records"},
    {
        "anatomy",
        "averaging",
        "batches",
        "chat",
        "demo_model",
        "disk",
        "facts",
        "linear",
        "memory",
        "pages",
        "provenance",
        "quantize",
        "selectors",
        "spec",
        "words",
    },
    {
        "activations",
        "buckets",
        "fact_files",
        "hook_names",
        "interpretation_prompt",
        "layers",
        "models",
        "spans",
        "surgery",
    },
    {"generation", "noise", "pair_files", "recorded", "sources", "trace_tables", "trunk"},
    {"location_tables", "prefix_tree", "rows"},
    {"decoding", "sweep", "trace_inputs"},
    {"knowledge", "preservation", "readings"},
    {"attribution", "control", "probing", "selfcheck", "selfie", "tracing"},
    {"approximation", "configs", "locations", "plots", "report", "runs"},
    {"attribution_runs", "bench", "fact_runs", "fact_traces", "neuron_runs", "probe_runs"},
    {"location_runs", "trace_runs"},
    {"cli"},
    {"__init__"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def own_imports(path: Path) -> set[str]:
    """Modules of ours a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "interpret":
            below = node.module.split(".")[1:2]
            found |= set(below) or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("interpret.")}
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_a_layer():
    present = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert present <= set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_below(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in own_imports(path) - {own}:
        assert LEVEL[name] < LEVEL[own], f"{own} imports {name}, which is not below it"


def test_the_documents_table_of_layers_is_this_one():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (TOP / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert {name: int(level) for level, name in rows} == {
        name: level for name, level in LEVEL.items() if not name.startswith("__")
    }


def test_every_package_is_installed():
    packages = {".".join(path.parent.relative_to(TOP).parts) for path in PACKAGE.rglob("__init__.py")}
    setup = (TOP / "setup.py").read_text()
    assert {name for name in packages if f'"{name}",' not in setup} == set()


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
        if path.relative_to(PACKAGE).parts[0] not in ("anatomy", "generation.py"):
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
        if path.relative_to(PACKAGE).parts[0] not in ("anatomy", "demo_model.py"):
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
