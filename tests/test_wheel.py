"""What the wheel holds and asks for; tests/installation/ installs it."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reference.house import MODULES, TOP
from reference.wheel import OFFLINE, PIP, build_wheel, copy_clone, tracked_files

EXTRAS = {"accelerate", "bitsandbytes", "cluster", "docs", "peft", "sentencepiece", "patch", "test"}
MOVED = {
    f"interpret/examples/{Path(name).name}": name
    for name in tracked_files()
    if name.startswith("examples/") or (name.startswith("scripts/") and name.endswith(".ipynb"))
}
"""File in the wheel -> file of the repository, where they differ."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return copy_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    return build_wheel(clone, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def metadata(wheel):
    """The headers of the wheel, and the text of its page."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        head, _, page = file.read(name).decode().partition("\n\n")
    return head, page


@pytest.fixture(scope="module")
def requirements(metadata):
    """Extra ("" for the base) -> its requirements by name."""
    lines = metadata[0].splitlines()
    found = {extra: {} for extra in ("", *EXTRAS)}
    assert {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra")} == EXTRAS
    for line in lines:
        if line.startswith("Requires-Dist: "):
            requirement = Requirement(line.removeprefix("Requires-Dist: "))
            extras = [extra for extra in EXTRAS if f'extra == "{extra}"' in str(requirement.marker)]
            found[extras[0] if extras else ""][canonicalize_name(requirement.name)] = requirement
    return found


def test_the_wheel_holds_the_package_the_patch_and_the_examples_and_nothing_else(names):
    own = {name for name in tracked_files() if name.split("/")[0] in ("interpret", "transformers_files")}
    assert names == own | {"install_patch.py"} | set(MOVED)
    assert len(MOVED) >= 5
    assert "interpret/py.typed" in names
    assert any(name.endswith(".css") for name in names)


def test_links_of_the_package_page_are_absolute(metadata):
    head, page = metadata
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text(encoding="utf-8"))
    assert f"\nVersion: {citation['version']}\n" in head
    places = re.findall(r"\]\(([^)\s]+)\)", (TOP / "README.md").read_text(encoding="utf-8"))
    absolute = re.findall(r"\]\(([^)\s]+)\)", page)
    assert len(places) == len(absolute) > 10
    for place, link in zip(places, absolute, strict=True):
        kind = "raw" if place.endswith(".png") else "blob"
        own = f"{citation['repository-code']}/{kind}/v{citation['version']}/{place}"
        assert link == (place if place.startswith(("https://", "#")) else own)


def test_examples_are_in_the_wheel_as_they_are_in_the_repository(wheel):
    with zipfile.ZipFile(wheel) as file:
        for name, source in MOVED.items():
            assert file.read(name) == (TOP / source).read_bytes(), name


def test_a_source_distribution_holds_what_a_wheel_is_built_from(clone, tmp_path, names):
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    with zipfile.ZipFile(build_wheel(source, tmp_path / "built")) as file:
        assert {name for name in file.namelist() if ".dist-info/" not in name} == names


# Every way of installing, in an empty folder: what is asked for, and the files that have to be there.
ASK = """
import json, sys
from pathlib import Path
import interpret
from interpret.pages.frame import page_pieces
assert [str(path) for path in Path.cwd().iterdir()] == []
paths = [interpret.example(name) for name in ("examples", "facts", "pairs", "trace", "interpretation_demo")]
json.dump([interpret.__file__, [str(path) for path in paths], [len(path.read_bytes()) for path in paths]], sys.stdout)
"""


def asked(site: Path, folder: Path):
    """What an installation answers; its packages come first, then those of this environment."""
    libraries = Path(packages_path())
    code = f"import site\nsite.addsitedir({str(site)!r})\nsite.addsitedir({str(libraries)!r})\n{ASK}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, env=without_python_path(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def packages_path() -> str:
    return str(Path(pytest.__file__).parents[1])


def without_python_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.parametrize("way", ["wheel", "editable"])
def test_examples_are_found_in_any_folder(way, request, tmp_path):
    clone = request.getfixturevalue("clone")
    what = [request.getfixturevalue("wheel")] if way == "wheel" else ["--editable", clone]
    (tmp_path / "empty").mkdir()
    prefix = tmp_path / "prefix"
    installing = [*PIP, "install", *OFFLINE, "--ignore-installed", "--prefix", prefix, *what]
    done = subprocess.run(installing, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = prefix.glob("lib/python*/site-packages")
    file, paths, sizes = asked(site, tmp_path / "empty")
    assert Path(file).is_relative_to(site if way == "wheel" else clone)
    assert all(Path(path).is_relative_to(site / "interpret" if way == "wheel" else clone) for path in paths)
    assert sizes == [
        (TOP / name).stat().st_size
        for name in ("examples/examples.json", "examples/facts.json", "examples/pairs.json", "examples/trace.yaml",
                     "scripts/interpretation_demo.ipynb")
    ]  # fmt: skip
    assert not {"examples", "scripts", "tests"} & {path.name for path in site.iterdir()}


def test_the_base_moves_nothing_that_a_user_has(requirements):
    base = requirements[""]
    assert str(base["transformers"].specifier) == ">=4.34.0"
    for name, requirement in base.items():
        assert {one.operator for one in requirement.specifier} <= {">="}, name
        assert requirement.marker is None, name
    assert not {"huggingface-hub", "tokenizers", "accelerate", "bitsandbytes", "peft", "sentencepiece"} & set(base)


def test_the_patch_pins_the_release_it_is_for_where_that_can_be_installed(requirements):
    patch = requirements["patch"]
    assert str(patch["transformers"].specifier) == "==4.34.0"
    assert {"tokenizers", "huggingface-hub", "accelerate", "bitsandbytes", "peft", "sentencepiece"} <= set(patch)
    for requirement in patch.values():
        for version, wanted in {"3.11": True, "3.12": True, "3.13": False}.items():
            assert requirement.marker.evaluate({"extra": "patch", "python_version": version}) is wanted, requirement


WITH_OTHERS = {"huggingface_hub": "transformers", "packaging": "transformers", "markupsafe": "jinja2"}
"""Modules that come with a package of the base."""
ONLY_WHERE_IT_IS = {
    ("interpret.models.eight_bit", "bitsandbytes"),
    ("interpret.display.shown", "IPython"),
    ("interpret.models.adapters", "peft"),
    ("interpret.work.progress", "IPython"),
    ("interpret.workers.ray_crew", "ray"),
}
"""Modules, with what they import once it is known to be there: a package that quantises, a notebook, a cluster."""
OF_EXTRAS = {"interpret.models.eight_bit", "interpret.workers.ray_crew"}
"""Modules that begin with the import of an extra, and are imported once it is known to be there."""
LAZY = {"accelerate", "bitsandbytes", "peft", "ray", "sentencepiece", "gguf"}


def test_every_module_that_is_imported_comes_with_the_base(requirements):
    known = packages_distributions()
    for module, path in MODULES.items():
        for imported in imported_modules(path) - sys.stdlib_module_names - {"interpret"}:
            owners = {canonicalize_name(owner) for owner in known.get(imported, ())} | {WITH_OTHERS.get(imported)}
            there = owners & set(requirements[""]) or (module, imported) in ONLY_WHERE_IT_IS
            assert there, f"{module} imports {imported}"


def imported_modules(path: Path) -> set[str]:
    """The top modules of all imports of a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


IMPORT_ALL = f"""
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in {sorted(LAZY)!r} + ["google.protobuf"]:
    sys.modules[name] = None  # importing it is an ImportError
for name in {[name for name in MODULES if name not in OF_EXTRAS | {"interpret.__main__"}]!r}:
    importlib.import_module(name)
"""


def test_every_module_is_imported_without_the_extras():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
