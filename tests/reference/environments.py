"""Environments of their own, into which tests install the package as a user does.

Torch, which is the largest package by far, is not installed again: its files are linked from the environment that runs
the tests.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reference.house import TOP

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
QUIET = ("--quiet", "--no-input", "--no-compile", "--constraint", str(TOP / "constraints.txt"))


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip; the pip of the tests works on it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def pip(self, command: str, *more: object) -> str:
        """Run a command of pip, which has to succeed, and return what it printed."""
        done = run([*PIP, "--python", self.python, command, *more])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *what: object) -> None:
        """Install requirements, wheels or clones."""
        self.pip("install", *QUIET, *what)

    def would_install(self, *what: object) -> dict[str, str]:
        """Return name -> version of what pip would install or change."""
        return resolved(self.pip("install", *QUIET, "--dry-run", "--report", "-", *what))

    def versions(self) -> dict[str, str]:
        """Return name -> version of what is installed."""
        return {canonicalize_name(one["name"]): one["version"] for one in json.loads(self.pip("list", "--format=json"))}

    def run(self, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder."""
        return run([self.folder / "bin" / str(words[0]), *words[1:]], cwd=cwd)


def run(words: list[object], **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a program as a user does: without the paths with which the tests find this package."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([*map(str, words)], env=clean, capture_output=True, text=True, **settings)  # type: ignore[call-overload, no-any-return]


def resolved(report: str) -> dict[str, str]:
    """Return name -> version of what a report of pip lists."""
    found = [one["metadata"] for one in json.loads(report)["install"]]
    return {canonicalize_name(one["name"]): one["version"] for one in found}


def make_environment(folder: Path) -> Environment:
    """Make an environment that has torch, and what torch needs."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in with_requirements("torch"):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.is_file():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                link(source, site / file)
    return Environment(folder)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; on another disk, copy it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy(source, target)


def with_requirements(name: str) -> set[str]:
    """Return a distribution of this environment and all that it requires."""
    found, open_ = set(), [name]
    while open_:
        one = canonicalize_name(open_.pop())
        if one not in found:
            found.add(one)
            needed = map(Requirement, importlib.metadata.requires(one) or ())
            open_ += [more.name for more in needed if more.marker is None or more.marker.evaluate({"extra": ""})]
    return found
