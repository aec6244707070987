"""Build the wheel from a copy of the tracked files, so that nothing else can get into it."""

import shutil
import subprocess
import sys
from pathlib import Path

from reference.house import TOP

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation")


def tracked_files() -> list[str]:
    """Return the files of the repository that are there, also new ones that git does not ignore."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=TOP, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (TOP / name).is_file()]


def copy_clone(folder: Path) -> Path:
    """Copy the tracked files into a new folder."""
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, folder / name)
    return folder


def build_wheel(clone: Path, folder: Path) -> Path:
    """Build the wheel of a clone into a folder, without an index."""
    subprocess.run([*PIP, "wheel", *OFFLINE, clone, "--wheel-dir", folder], capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel
