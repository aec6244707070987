"""Add the surgery methods to the installed transformers 4.34.0, tell whether they are there, take them away.

    python install_patch.py [install | status | restore] [--transformers DIR]

A patched file is the stock file, byte for byte, followed by a marked block from ``transformers_files``; so what
worked still works, and restoring is exact. Files are never written in place, because package managers hard-link
one file into many environments: a new file is written beside the old one and renamed over it. Both files are
ready on disk before the first rename, so a run that is killed leaves each file whole, and running ``install`` or
``restore`` again finishes it.

Standard library only, and nothing is imported from transformers: this runs from a clone before anything is
installed. Exit codes: 0 done (``status``: installed), 1 ``status``: not installed or not completely, 2 refused.
"""

import argparse
import hashlib
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VERSION = "4.34.0"
# In the order of installing: the methods of the second file call the first one's.
STOCK_SHA256 = {
    "generation/utils.py": "321e607e70f77e0b5b2cef22c4a517c927a540e2816379cea767a00c80e6af31",
    "models/llama/modeling_llama.py": "587c6c22164aa5ed2dce80bc6a1ebf173fe7ec42043f64986dbe2b588bab7dbe",
}
ADDITIONS = Path(__file__).resolve().parent / "transformers_files"
# What installs that release with the packages that work with it; from a clone, this file lies beside its setup.py.
IN_CLONE = ADDITIONS.with_name("setup.py").is_file()
PIP_INSTALL = "pip install -e '.[patch]'" if IN_CLONE else "pip install 'llm-interpret[patch]'"
# Blocks of every release begin and end like this, so that a later one knows an earlier one's.
BEGIN = b"# >>> llm-interpret: begin"
END = b"# <<< llm-interpret: end <<<\n"
LOCK_NAME = ".llm-interpret-lock"
LOCK_SECONDS = 10.0

STOCK, PATCHED, OUTDATED, UNKNOWN = "stock", "patched", "patched by another release", "unknown"
INSTALLED, NOT_INSTALLED, HALF = "installed", "not installed", "half installed"
ADVICE = {
    HALF: "; `install` or `restore` finishes it",
    OUTDATED: "; `install` brings it up to date",
    UNKNOWN: "; `install` says which file and what to do",
}


class Refused(Exception):
    """Why nothing was done, and what would help."""


@dataclass(frozen=True)
class Target:
    """One file of transformers to patch."""

    path: Path
    stock_sha256: str
    block: bytes
    """What follows the stock bytes when patched."""

    @property
    def backup(self) -> Path:
        """The stock bytes while the file is patched."""
        return self.path.with_name(self.path.name + ".llm-interpret-stock")

    @property
    def new(self) -> Path:
        """The next content, until it is renamed over the file."""
        return self.path.with_name(self.path.name + ".llm-interpret-new")

    def read(self) -> tuple[str, bytes]:
        """Return the state of the file and the stock bytes in it (if the state is not unknown)."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        stock = data.partition(b"\n\n" + BEGIN)[0]
        block = data[len(stock) :]
        if hashlib.sha256(stock).hexdigest() != self.stock_sha256:
            return UNKNOWN, b""
        if not block:
            return STOCK, stock
        if block == self.block:
            return PATCHED, stock
        # Bytes after our end marker are somebody else's, and not ours to drop.
        return (OUTDATED, stock) if block.endswith(END) and block.count(END) == 1 else (UNKNOWN, b"")

    def is_backed_up(self) -> bool:
        """Tell whether the backup holds the stock bytes."""
        return self.backup.is_file() and hashlib.sha256(self.backup.read_bytes()).hexdigest() == self.stock_sha256


def find_transformers() -> Path:
    """Find the folder of the transformers that this Python would import."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise Refused(
            f"{sys.executable} has no transformers; run `{PIP_INSTALL}` (Python 3.11 or 3.12), "
            "or name its folder with --transformers DIR"
        )
    return Path(spec.origin).parent


def find_targets(package: Path) -> list[Target]:
    """Pair each file to patch with its block."""
    targets = []
    for name, sha256 in STOCK_SHA256.items():
        source = ADDITIONS / name
        # A checkout with CRLF line ends must not change what is installed.
        text = source.read_bytes().replace(b"\r\n", b"\n") if source.is_file() else b""
        if BEGIN not in text or not text.endswith(END):
            raise Refused(f"{source} is missing or damaged; get a fresh copy of llm-interpret")
        targets.append(Target(package / name, sha256, b"\n\n" + text[text.index(BEGIN) :]))
    return targets


def read_version(package: Path) -> str:
    """Read the version of transformers without importing it."""
    source = package / "__init__.py"
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    found = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    if found is None:
        raise Refused(f"{package} is not the folder of a transformers package: no __version__ in its __init__.py")
    return found[1]


def overall_state(targets: Sequence[Target]) -> str:
    """Sum up the states of the files."""
    states = {target.read()[0] for target in targets}
    if UNKNOWN in states:
        return UNKNOWN
    if any(target.new.exists() for target in targets):
        return HALF
    if states == {STOCK} and not any(target.backup.exists() for target in targets):
        return NOT_INSTALLED
    if states == {PATCHED} and all(target.is_backed_up() for target in targets):
        return INSTALLED
    return OUTDATED if OUTDATED in states and STOCK not in states else HALF


def foreign_owners(site: Path) -> list[str]:
    """Name the distributions in a site-packages folder, ours left out, that install a package `interpret`."""
    owners = []
    for folder in sorted([*site.glob("*.dist-info"), *site.glob("*.egg-info")]):
        name = re.sub(r"[-_.]+", "-", folder.stem.split("-")[0]).lower()
        top_level, record = (
            path.read_bytes() if path.is_file() else b"" for path in (folder / "top_level.txt", folder / "RECORD")
        )
        owns = b"interpret" in top_level.split() or re.search(rb"^interpret(/|\.py,)", record, re.MULTILINE)
        if owns and name != "llm-interpret":
            owners.append(name)
    return owners


def is_ours(package: Path) -> bool:
    """Tell whether a folder called `interpret` holds our package."""
    engine = package / "generation.py"
    return engine.is_file() and b"forward_interpret" in engine.read_bytes()


def describe_interpret(site: Path) -> str:
    """Say which `interpret` this Python would import beside the transformers in `site`, and whose it is."""
    before = sys.path[:]
    # A script's own folder is searched only while that script runs.
    others = before[1:] if Path(before[0]) == ADDITIONS.parent else before
    sys.path[:] = [str(site), *others]
    try:
        spec = find_spec("interpret")
        ours = spec is not None and spec.origin is not None and is_ours(Path(spec.origin).parent)
    except OSError as error:  # the patch itself is done by now; a folder on the way may be closed to this user
        return f"interpret: {error.filename} cannot be read by this user: {error.strerror}"
    finally:
        sys.path[:] = before
    if spec is None or spec.origin is None:
        return f"interpret: not found by {sys.executable}; the methods need it: pip install llm-interpret"
    if ours:
        return f"interpret: {spec.origin}"
    return f"interpret: {spec.origin} is another library's; the methods need llm-interpret's"


def checked_targets(package: Path) -> list[Target]:
    """List the files to patch, and refuse any transformers but the one whose files are known."""
    version = read_version(package)
    if version != VERSION:
        raise Refused(
            f"the transformers in {package} is {version}, and the patch is for {VERSION} only; "
            f"run `{PIP_INSTALL}` there (Python 3.11 or 3.12), or leave it and call `interpret.attach(model)`, which "
            "gives one model the same methods and changes no file"
        )
    targets = find_targets(package)
    check_files(targets)
    return targets


def check_files(targets: Sequence[Target]) -> None:
    """Refuse files whose bytes are neither stock nor ours."""
    for target in targets:
        if target.read()[0] == UNKNOWN:
            raise Refused(
                f"{target.path} is neither the file of transformers {VERSION} (sha256 {target.stock_sha256}) nor "
                "that file with our block after it, so somebody else changed it; get the stock file back with "
                f"`pip install --force-reinstall --no-deps transformers=={VERSION}`"
            )


def check_writable(package: Path, targets: Sequence[Target]) -> None:
    """Refuse folders this user cannot write to."""
    files = [path for target in targets for path in (target.path, *bytecode_of(target.path))]
    for folder in (package, *(path.parent for path in files)):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Refused(
                f"{folder} cannot be written by this user; run this as its owner, or use an environment of your "
                f"own: python -m venv venv && venv/bin/{PIP_INSTALL}"
            )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs away by a lock file, waiting a while for one that is at work."""
    deadline = time.monotonic() + LOCK_SECONDS
    handle = try_lock(path)
    if handle is None:
        print(f"waiting for another install_patch, which holds {path}", flush=True)
    while handle is None:
        if time.monotonic() > deadline:
            raise Refused(f"another install_patch holds {path} for {LOCK_SECONDS:g} s now; try again later")
        time.sleep(0.05)
        handle = try_lock(path)
    with handle:
        try:
            yield
        finally:
            path.unlink()


def try_lock(path: Path) -> IO[bytes] | None:
    """Lock a file and return it open, or None while another process holds it."""
    handle = path.open("ab")
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before us may have removed the file between our opening and our locking it.
        if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
            return handle
    handle.close()
    return None


def bytecode_of(path: Path) -> list[Path]:
    """List the compiled forms of a source file, of every Python and optimisation level."""
    folders = {path.parent / "__pycache__", Path(cache_from_source(str(path))).parent}
    return [compiled for folder in sorted(folders) for compiled in folder.glob(f"{path.stem}.*.pyc")]


def clear_bytecode(path: Path) -> None:
    """Remove compiled forms: one made of other source of the same size and time would be run instead of it."""
    for compiled in bytecode_of(path):
        compiled.unlink(missing_ok=True)


def write_beside(target: Target, path: Path, data: bytes) -> None:
    """Write a file to disk with the owner and the permission bits of the target."""
    path.unlink(missing_ok=True)
    like = target.path.stat()
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        with suppress(PermissionError):
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
        os.fsync(file.fileno())


def swap(target: Target) -> None:
    """Rename the new file over the old one."""
    clear_bytecode(target.path)  # now, in case we are killed before the second time
    os.replace(target.new, target.path)  # noqa: PTH105 - the name people look for
    clear_bytecode(target.path)  # again, in case somebody imported the old file meanwhile


def tidy(targets: Sequence[Target]) -> None:
    """Remove what no file needs: new files that were not used, backups of files that are stock."""
    for target in targets:
        target.new.unlink(missing_ok=True)
        if target.read()[0] == STOCK:
            target.backup.unlink(missing_ok=True)


def change_files(targets: Sequence[Target], wanted: str) -> None:
    """Bring every file to the wanted state, with everything written before the first rename."""
    todo = [target for target in targets if target.read()[0] != wanted]
    try:
        for target in targets:
            stock = target.read()[1]
            if target in todo:
                write_beside(target, target.new, stock + target.block if wanted == PATCHED else stock)
            if wanted == PATCHED and not target.is_backed_up():
                write_beside(target, target.backup, stock)
        for target in todo if wanted == PATCHED else reversed(todo):
            swap(target)
            print(f"{wanted:8}{target.path}")
    finally:
        tidy(targets)


def bring_to(goal: str, package: Path, targets: Sequence[Target]) -> bool:
    """Bring the package to a state; return False if it is there already."""
    lock = package / LOCK_NAME
    if overall_state(targets) == goal and not lock.exists():
        return False
    check_writable(package, targets)
    with locked(lock):
        check_files(targets)
        if overall_state(targets) == goal:
            return False
        change_files(targets, PATCHED if goal == INSTALLED else STOCK)
    return True


def install(package: Path) -> int:
    """Patch both files."""
    targets = checked_targets(package)
    owners = foreign_owners(package.parent)
    if owners:
        raise Refused(
            f"{package.parent} has another package called `interpret`, of {' and '.join(owners)}, and it hides "
            "ours; uninstall that one there, or use an environment without it"
        )
    if bring_to(INSTALLED, package, targets):
        print(*(f"backup  {target.backup}" for target in targets), sep="\n")
        print(f"installed in transformers {VERSION} in {package}")
    else:
        print(f"already installed in {package}; nothing changed")
    print(describe_interpret(package.parent))
    return 0


def restore(package: Path) -> int:
    """Give both files their stock bytes back and remove the backups."""
    targets = checked_targets(package)
    if bring_to(NOT_INSTALLED, package, targets):
        print(f"transformers {VERSION} in {package} is as it was published")
    else:
        print(f"not installed in {package}; nothing changed")
    return 0


def status(package: Path) -> int:
    """Say what is there; return 0 only if all of it is."""
    version = read_version(package)
    targets = find_targets(package)
    state = overall_state(targets)
    print(f"transformers {version} in {package}" + ("" if version == VERSION else f"; the patch is for {VERSION}"))
    for target in targets:
        print(f"  {target.path.relative_to(package)}: {target.read()[0]}")
        for ours in filter(Path.exists, (target.backup, target.new)):
            print(f"    beside it: {ours.name}")
    if (package / LOCK_NAME).exists():
        print(f"  {LOCK_NAME}: of a run that is at work or was killed")
    for owner in foreign_owners(package.parent):
        print(f"  another package called `interpret` is here, of {owner}; it hides ours")
    print(describe_interpret(package.parent))
    print(state + ADVICE.get(state, ""))
    return 0 if state == INSTALLED and version == VERSION else 1


ACTIONS: dict[str, Callable[[Path], int]] = {"install": install, "status": status, "restore": restore}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one action and return the exit code."""
    parser = argparse.ArgumentParser(prog="interpret-patch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", nargs="?", choices=[*ACTIONS], default="install", help="default: install")
    parser.add_argument("--transformers", metavar="DIR", type=Path, help="default: the one this Python imports")
    arguments = parser.parse_args(argv)
    try:
        if fcntl is None:
            raise Refused("this needs the file locks of Linux or macOS; interpret.attach(model) needs no patch")
        package = arguments.transformers.absolute() if arguments.transformers else find_transformers()
        return ACTIONS[arguments.action](package)
    except Refused as refusal:
        print(f"refused, nothing changed: {refusal}", file=sys.stderr)
    except (OSError, KeyboardInterrupt) as error:
        print(f"stopped by {error!r}; `status` tells how far it came", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
