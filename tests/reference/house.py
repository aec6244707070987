"""The packages of the project, the levels that restrict their imports, and their actual imports."""

import ast
from importlib.util import find_spec
from pathlib import Path

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "interpret"
# A package (or a module beside the packages) may import only from earlier levels; docs/architecture.md describes each.
LEVELS = [
    {"lazy"},
    {"errors"},
    {"examples", "reading"},
    {"device", "finite", "records"},
    {"anatomy", "prompts", "stats", "storage"},
    {"activations", "drawing", "models", "pages", "work"},
    {"display", "engine", "workers"},
    {"surgery", "sweep"},
    {"control", "facts", "generation", "slots"},
    {"probing"},
    {"attribution", "selfie", "tracing"},
    {"bench", "locating"},
    {"factpages"},
    {"figures"},
    {"cli"},
    {"__init__"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def name_of(path: Path) -> str:
    """Return the dotted name of a module."""
    return ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORT_RAY = {"interpret.workers.ray_crew"}
"""The modules that need the extra ``cluster``."""
IMPORTABLE = [name for name in MODULES if name not in IMPORT_RAY or find_spec("ray")]
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py" and name != "interpret.lazy"]
"""Those whose public names are imported when they are first used."""


def room_of(module: str) -> str:
    """Return the package, or the module beside the packages, that contains a dotted name."""
    return module.split(".")[1] if "." in module else "__init__"


def own_imports(path: Path) -> set[str]:
    """Return the modules of this project that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "interpret":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "interpret"}
    return found


def homes_of(package: str) -> dict[str, str]:
    """A package's public names as its stub lists them, each with the module it comes from; a module is its own home."""
    homes = {}
    for node in ast.parse(MODULES[package].with_suffix(".pyi").read_text(encoding="utf-8")).body:
        assert isinstance(node, ast.ImportFrom)
        assert node.level == 1
        for alias in node.names:
            assert alias.asname == alias.name, (
                f"{package}: type checkers see only ``import {alias.name} as {alias.name}``"
            )
            homes[alias.name] = f"{package}.{node.module or alias.name}"
    return homes


IMPORTS = {module: own_imports(path) - {module} for module, path in MODULES.items()}
for _package in PACKAGES:
    if _package != "interpret":
        IMPORTS[_package] |= set(homes_of(_package).values())


def room_imports() -> dict[str, set[str]]:
    """Return, for each package and module beside the packages, which of the others it imports."""
    rooms: dict[str, set[str]] = {}
    for module, imported in IMPORTS.items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, imported))
    return {room: others - {room} for room, others in rooms.items()}
