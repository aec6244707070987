"""The shape of the project: who imports whom, what is public, what scripts may be."""

import ast
import importlib
import inspect
import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from mypy import api as mypy

import interpret
from interpret.activations import SITES
from interpret.anatomy import FAMILIES, Experts, Family, Parts
from interpret.attribution.methods.layer_gradients import LAYER_SITES
from interpret.engine.layers import Point
from interpret.records.states import FINAL_NORM
from interpret.selfie.sources import SOURCE_SITES
from interpret.sweep.cells import CELL_SITES, PINNED
from reference.house import (
    IMPORT_RAY,
    IMPORTABLE,
    IMPORTS,
    LEVEL,
    MODULES,
    PACKAGE,
    PACKAGES,
    TOP,
    homes_of,
    name_of,
    room_imports,
    room_of,
)


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
    assert circle(room_imports()) == []


ANALYSES = {"attribution", "control", "probing", "selfie", "tracing"}


def test_analyses_do_not_import_each_other():
    for room, others in room_imports().items():
        if room in ANALYSES:
            assert not others & (ANALYSES - {room}), room


def constants(path: Path) -> set[str]:
    """The names that a module assigns at its top."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {part.id for target in targets if target for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("SITES", "interpret.activations._record"),
        ("Site", "interpret.activations._record"),
        ("Floats", "interpret.stats"),
        ("MEDIATORS", "interpret.tracing.mediators"),
        ("DEFAULT_MEDIATORS", "interpret.tracing.mediators"),
        ("TRACE_METHODS", "interpret.records.traces"),
        ("METHODS", "interpret.attribution.methods.registry"),
    ],
)
def test_one_fact_is_told_in_one_place(name, home):
    assert [module for module, path in MODULES.items() if name in constants(path)] == [home]


def test_every_choice_of_sites_is_of_the_one_vocabulary():
    for choice in (LAYER_SITES, SOURCE_SITES, CELL_SITES, PINNED, get_args(Point)):
        assert set(choice) < set(SITES)


def test_tests_stand_in_the_package_they_are_about():
    folders = {
        path.name for path in (TOP / "tests").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))
    }
    packages = {room_of(module) for module in PACKAGES} - {"__init__"}
    assert folders - packages == {"data", "installation", "integration", "mutants", "other_device", "reference"}
    untested = packages - folders
    assert untested <= {"drawing"}, untested  # used by figures, and tested with them


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in MODULES.values()}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_only_the_command_line_prints():
    for path in MODULES.values():
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        printing = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
        assert not printing or path.relative_to(PACKAGE).parts[0] == "cli", path


def opens_runs(path: Path) -> bool:
    """Whether a module names what opens a run folder for writing."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return bool(names & {"open_run", "fill_folder"})


def test_only_runs_modules_and_the_loop_open_run_folders_for_writing():
    writing = [path for path in MODULES.values() if opens_runs(path)]
    assert PACKAGE / "workers" / "runs.py" in writing
    for path in writing:
        room = path.relative_to(PACKAGE).parts[0]
        assert room in ("work", "cli") or path.stem == "runs" or path.stem.endswith("_runs"), path


def test_transformers_is_version_bound_in_two_places_only():
    """What differs between its versions: cache layouts, layer calls and the methods generate is made of."""
    words = re.compile(
        r"past_key_values\[|hidden_states\"\]|greedy_search\(|_prepare_\w+\(|if .*__version__|DynamicCache"
    )
    for path in MODULES.values():
        if room_of(name_of(path)) != "anatomy" and path != PACKAGE / "surgery" / "generation.py":
            assert not words.findall(path.read_text(encoding="utf-8")), path


def module_names(of) -> set[str]:
    """The names in a family's row that no other word could be."""
    if isinstance(of, str):
        return {name for name in re.split(r"[.|]", of) if "_" in name}
    parts = vars(of).values() if isinstance(of, (Experts, Family, Parts)) else of if isinstance(of, tuple) else ()
    return {name for part in parts for name in module_names(part)}


def test_only_the_anatomy_knows_the_modules_of_a_family():
    names = {name for family in FAMILIES.values() for name in module_names(family)}
    assert {"self_attn", "q_proj", "c_attn", "ln_2", "pre_feedforward_layernorm"} <= names
    names -= {FINAL_NORM}  # a word of the tables, too
    words = re.compile(rf"\b({'|'.join(names)})\b")
    for path in MODULES.values():
        # The demo model is a Llama, written file by file.
        if room_of(name_of(path)) != "anatomy" and path != PACKAGE / "models" / "demo.py":
            assert not words.findall(path.read_text(encoding="utf-8")), path


def test_the_top_holds_a_few_modules_and_packages():
    beside = {path.stem for path in PACKAGE.glob("*.py")}
    assert beside == {"__init__", "__main__", "device", "errors", "finite", "generation", "stats"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_nothing_by_itself(package):
    docstring, *rest = ast.parse(MODULES[package].read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert [ast.unparse(line) for line in rest] == [
        "from interpret.lazy import lazy_names",
        "__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)",
    ]


def documented(module: str) -> set[str]:
    """What a module defines with a docstring; that of a constant or an alias stands below it."""
    body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    found = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)}
    for node, following in itertools.pairwise(body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(getattr(following, "value", None), ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_exported_and_documented(package):
    module = importlib.import_module(package)
    assert module.__doc__
    assert module.__all__ == sorted(homes_of(package)) == sorted(dir(module))
    for name, home in homes_of(package).items():
        if home != f"{package}.{name}":
            defined = getattr(getattr(module, name), "__module__", home)
            assert name in documented(defined if defined in MODULES else home), name


def test_what_is_public_at_the_top_is_public_in_its_package():
    for name, home in homes_of("interpret").items():
        if home != f"interpret.{name}" and home != "interpret.errors":
            assert name in homes_of(f"interpret.{room_of(home)}"), name


def functions_of(found: object) -> Iterator[Any]:
    """A function itself; of a class its constructor, public methods and properties."""
    if inspect.isfunction(found):
        yield found
    elif isinstance(found, type):
        for name, member in vars(found).items():
            if name == "__init__" or not name.startswith("_"):
                plain = getattr(member, "__func__", getattr(member, "fget", member))
                if inspect.isfunction(plain):
                    yield plain


def own_classes(annotation: Any) -> Iterator[type]:
    """Public classes of ours within an annotation."""
    if isinstance(annotation, list | tuple):
        for part in annotation:
            yield from own_classes(part)
    elif parts := get_args(annotation):
        yield from own_classes(parts)
    elif isinstance(annotation, type) and annotation.__module__ in MODULES and not annotation.__name__.startswith("_"):
        yield annotation


@pytest.mark.parametrize("package", PACKAGES)
def test_what_public_functions_take_and_give_is_public(package):
    public = {room_of(name): set() for name in PACKAGES}
    for name in PACKAGES:
        public[room_of(name)] |= set(homes_of(name))
    for name, home in homes_of(package).items():
        for function in functions_of(getattr(importlib.import_module(home), name, None)):
            names = vars(inspect.getmodule(function)) | type_checking_names(home)
            for found in own_classes(list(get_type_hints(function, names).values())):
                room = room_of(found.__module__)
                assert room not in public or found.__name__ in public[room], f"{home}.{name}: {found}"


def type_checking_names(module: str) -> dict[str, object]:
    """What a module imports for its annotations alone."""
    found = {}
    for block in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            exec(ast.unparse(block.body), found)
    return found


def test_no_public_class_is_defined_twice():
    counts = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_public_name_is_that_of_a_module_of_its_package_or_of_a_package():
    """Once it is imported, such a module would take the name's place."""
    packages = {name.rpartition(".")[2] for name in PACKAGES if name != "interpret"}
    for package in PACKAGES:
        homes = homes_of(package)
        beside = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
        names = {name for name, home in homes.items() if home != f"{package}.{name}"}
        assert names & (beside | packages) == set(), package


ORDERS = {
    "sorted": sorted,
    "reversed": lambda names: sorted(names, reverse=True),
    "shuffled": lambda names: random.Random(0).sample(sorted(names), len(names)),
}
FIND_EACH_NAME = """
import importlib, json, sys
modules, names = json.load(sys.stdin)
for module in modules:
    importlib.import_module(module)
for package, name, home in names:
    found, wanted = getattr(importlib.import_module(package), name), importlib.import_module(home)
    assert found is (wanted if home == f"{package}.{name}" else getattr(wanted, name)), (package, name)
    defined = getattr(found, "__module__", "")
    assert not defined.startswith("interpret.") or getattr(sys.modules[defined], name) is found, (package, name)
"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_name_is_the_same_whatever_was_imported_before(order):
    names = [(package, name, home) for package in PACKAGES for name, home in homes_of(package).items()]
    importable = [name for name in IMPORTABLE if name != "interpret.__main__"]
    asked = json.dumps([ORDERS[order](importable), names])
    command = [sys.executable, "-W", "ignore", "-c", FIND_EACH_NAME]
    done = subprocess.run(command, input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_every_name(tmp_path, monkeypatch):
    (tmp_path / "user.py").write_text(
        "import interpret\nreveal_type(interpret.tracing.trace)\nreveal_type(interpret.Prompt)\ninterpret.traec\n"
    )
    monkeypatch.chdir(TOP)
    said, _, _ = mypy.run([str(tmp_path / "user.py")])
    assert re.search(r'user.py:2: note: Revealed type is "def \(.*\) -> interpret.tracing.result.TraceResult"', said)
    assert re.search(r'user.py:3: note: Revealed type is "def \(.*\) -> interpret.prompts.prompts.Prompt"', said)
    assert 'user.py:4: error: Module has no attribute "traec"' in said


def test_only_one_module_imports_ray_and_it_is_imported_where_workers_start():
    for name, path in MODULES.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert (name in IMPORT_RAY) == any(one.split(".")[0] == "ray" for one in imported), name
        assert name == "interpret.workers.runs" or not imported & IMPORT_RAY, name


def test_scripts_are_thin():
    for path in (TOP / "scripts").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


# Slow to import; numbers of seconds.
HEAVY = {"torch", "transformers", "numpy", "pandas", "matplotlib"}


def loaded_by(code: str) -> set[str]:
    """The modules that code loads which prints and warns nothing."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return set(done.stdout.split())


def test_importing_the_package_loads_prints_and_warns_nothing():
    assert not loaded_by("import interpret") & HEAVY
    light = "records, storage.run_folder, sweep.cells, tracing.mediators".split(", ")
    assert not loaded_by("".join(f"import interpret.{name}\n" for name in light)) & HEAVY


def test_a_user_sees_no_warnings_of_libraries_and_keeps_filters():
    """transformers 4.34.0 warns when it is first imported: here, when a name is first used."""
    loaded = loaded_by(
        "import warnings, interpret\nbefore = warnings.filters[:]\ninterpret.tracing.trace, interpret.load\n"
        "assert warnings.filters == before"
    )
    assert {"torch", "transformers"} <= loaded


def test_a_wrong_name_is_told_with_the_nearest_one():
    with pytest.raises(AttributeError, match=r"^module 'interpret' has no attribute 'traec'$") as caught:
        _ = interpret.traec
    assert (caught.value.name, caught.value.obj) == ("traec", interpret), "Python's hint is made of these"


def test_the_files_tell_no_machine_and_no_registry():
    tracked = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if name == "tests/test_structure.py" or not (TOP / name).is_file():
            continue
        text = (TOP / name).read_bytes().decode("utf-8", "ignore")
        assert not re.search(r"(?<![\w.])/(root|work|home)/|index-url|--find-links", text), name
