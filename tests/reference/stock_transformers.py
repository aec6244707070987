"""Copies of transformers that can be patched, and Python processes that import only those."""

import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from install_patch import BEGIN, STOCK_SHA256

REPO = Path(__file__).resolve().parents[2]
OWN = Path(find_spec("transformers").origin).parent
UTILS, LLAMA = STOCK_SHA256
MARK = b"\n\n" + BEGIN


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the contents and permission bits of every file under a folder, without bytecode files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o7777) for path in files}


def own_stock(name: str) -> bytes:
    """Return the stock bytes of an installed transformers file, which may be patched (as after `make demo`)."""
    stock = (OWN / name).read_bytes().partition(MARK)[0]
    assert hashlib.sha256(stock).hexdigest() == STOCK_SHA256[name]
    return stock


def make_package(site: Path) -> Path:
    """Make a transformers package with only the two files; importing it raises an error."""
    for name in STOCK_SHA256:
        (site / "transformers" / name).parent.mkdir(parents=True)
        (site / "transformers" / name).write_bytes(own_stock(name))
    (site / "transformers/__init__.py").write_text('__version__ = "4.34.0"\nraise RuntimeError("imported")\n')
    return site / "transformers"


def python(*arguments: object, path: tuple[Path, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a new Python process with `path` first in its module search path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-B", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, **options)


def run(*arguments: object) -> tuple[int, str]:
    """Run install_patch.py as a script; return its exit code and output."""
    done = python(REPO / "install_patch.py", *arguments)
    return done.returncode, done.stdout + done.stderr


def own_files() -> list[tuple[str, int]]:
    """Return the sha256 and modification time of the two files in the environment."""
    paths = [OWN / name for name in STOCK_SHA256]
    return [(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in paths]
