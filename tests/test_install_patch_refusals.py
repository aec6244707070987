"""What install_patch.py refuses, on a copy of transformers: each refusal changes nothing."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import install_patch
from install_patch import END, STOCK_SHA256, Refused, find_targets, install, main, restore
from reference.stock_transformers import (
    LLAMA,
    MARK,
    REPO,
    UTILS,
    content,
    make_package,
    own_files,
    python,
    run,
)


@pytest.fixture(autouse=True, scope="module")
def own_transformers_stays_as_it_is() -> Iterator[None]:
    before = own_files()
    yield
    assert own_files() == before


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "site")


def refuses(action: Callable[[Path], int], package: Path, message: str) -> None:
    """Check the whole message, the exit code, and that no file changed."""
    before = content(package.parent)
    with pytest.raises(Refused, match=f"^{re.escape(message)}$"):
        action(package)
    assert main([action.__name__, "--transformers", str(package)]) == 2
    assert content(package.parent) == before


@pytest.mark.parametrize("version", ["4.33.3", "4.34.1", "4.35.0", "4.34.0.dev0"])
@pytest.mark.parametrize("action", [install, restore])
def test_other_version_is_refused(package: Path, version: str, action: Any) -> None:
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    message = (
        f"the transformers in {package} is {version}, and the patch is for 4.34.0 only; "
        "run `pip install -e '.[patch]'` there (Python 3.11 or 3.12), or leave it and call "
        "`interpret.attach(model)`, which gives one model the same methods and changes no file"
    )
    refuses(action, package, message)
    code, said = run("status", "--transformers", package)
    assert (code, said.splitlines()[0]) == (1, f"transformers {version} in {package}; the patch is for 4.34.0")


UNKNOWN = {
    "edited": lambda stock: stock.replace(b"torch", b"troch", 1),
    "appended to": lambda stock: stock + b"\n",
    "edited and patched": lambda stock: b"#" + stock + MARK + b"\n" + END,
    "appended to after our block": lambda stock: stock + MARK + b"\n" + END + b"x = 1\n",
    "block cut short": lambda stock: stock + MARK + b"\n",
    "emptied": lambda stock: b"",
}


@pytest.mark.parametrize("how", UNKNOWN)
@pytest.mark.parametrize("name", STOCK_SHA256)
def test_unknown_bytes_are_refused(package: Path, name: str, how: str) -> None:
    path = package / name
    path.write_bytes(UNKNOWN[how](path.read_bytes()))
    message = (
        f"{path} is neither the file of transformers 4.34.0 (sha256 {STOCK_SHA256[name]}) nor that file with our "
        "block after it, so somebody else changed it; get the stock file back with "
        "`pip install --force-reinstall --no-deps transformers==4.34.0`"
    )
    refuses(install, package, message)
    refuses(restore, package, message)
    assert main(["status", "--transformers", str(package)]) == 1


@pytest.mark.parametrize(
    ("folder", "file", "text"),
    [
        ("interpret_core-0.6.9.dist-info", "RECORD", "interpret/__init__.py,sha256=x,1\n"),
        ("interpret-core-0.2.egg-info", "top_level.txt", "other\ninterpret\n"),
    ],
)
def test_another_library_called_interpret_is_refused(package: Path, folder: str, file: str, text: str) -> None:
    site = package.parent
    (site / "llm_interpret-0.1.0.dist-info").mkdir()
    (site / "llm_interpret-0.1.0.dist-info/RECORD").write_text("interpret/__init__.py,,\n")
    (site / "interpreter-1.dist-info").mkdir()
    (site / "interpreter-1.dist-info/RECORD").write_text("interpreter/__init__.py,,\nx/interpret/__init__.py,,\n")
    install(package)
    restore(package)
    (site / folder).mkdir()
    (site / folder / file).write_text(text)
    (site / "interpret").mkdir()
    (site / "interpret/__init__.py").touch()
    owner = "interpret-core" if "dist" in folder else "interpret"
    message = (
        f"{site} has another package called `interpret`, of {owner}, and it hides ours; "
        "uninstall that one there, or use an environment without it"
    )
    refuses(install, package, message)
    assert run("status", "--transformers", package)[1].splitlines()[-3:] == [
        f"  another package called `interpret` is here, of {owner}; it hides ours",
        f"interpret: {site}/interpret/__init__.py is another library's; the methods need llm-interpret's",
        "not installed",
    ]


AS_NOBODY = """
import os, sys
sys.path.insert(0, os.getcwd())
import install_patch
install_patch.main(["status", "--transformers", sys.argv[1]])  # imports what nobody may not read
if os.getuid() == 0:  # whom no permission bits stop
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(install_patch.main(["install", "--transformers", sys.argv[1]]))
"""


@pytest.mark.parametrize("closed", ["transformers", "transformers/models/llama"])
def test_folder_that_cannot_be_written_is_refused(closed: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # not in tmp_path, which is closed to other users
        folder = Path(name)
        package = make_package(folder)
        shutil.copy(REPO / "install_patch.py", folder)
        shutil.copytree(REPO / "transformers_files", folder / "transformers_files")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o644)
        (folder / closed).chmod(0o555)
        before = content(folder)
        done = python("-c", AS_NOBODY, package, cwd=folder)
        own = "python -m venv venv && venv/bin/pip install 'llm-interpret[patch]'"
        assert (done.returncode, done.stderr) == (
            2,
            f"refused, nothing changed: {folder / closed} cannot be written by this user; "
            f"run this as its owner, or use an environment of your own: {own}\n",
        )
        assert content(folder) == before
        (folder / closed).chmod(0o777)
        assert python("-c", AS_NOBODY, package, cwd=folder).returncode == 0


@pytest.mark.parametrize("asked", ["is_ours", "find_spec"])  # finders of editable installs look at the folder, too
def test_an_interpret_this_user_may_not_read_does_not_stop_the_patch(
    package: Path, monkeypatch: Any, capsys: Any, asked: str
) -> None:
    def closed(folder: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(install_patch, asked, closed)
    assert main(["install", "--transformers", str(package)]) == 0
    assert re.search(r"^interpret: .* cannot be read by this user: Permission denied$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_and_ctrl_c_leave_all_as_it_was(
    package: Path, error: BaseException, monkeypatch: Any, capsys: Any
) -> None:
    before = content(package)
    syncs = iter([None, None, None, error])  # of four files

    def sync(file: int) -> None:
        if (failure := next(syncs)) is not None:
            raise failure

    monkeypatch.setattr(os, "fsync", sync)
    assert main(["install", "--transformers", str(package)]) == 2
    assert content(package) == before
    assert capsys.readouterr().err == f"stopped by {error!r}; `status` tells how far it came\n"


def test_lock_held_too_long_is_refused(package: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(install_patch, "LOCK_SECONDS", 0.1)
    lock = package / install_patch.LOCK_NAME
    with install_patch.locked(lock):
        refuses(install, package, f"another install_patch holds {lock} for 0.1 s now; try again later")
        assert lock.name in run("status", "--transformers", package)[1]


def test_what_is_no_transformers_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    message = f"{folder} is not the folder of a transformers package: no __version__ in its __init__.py"
    for action in (install, restore, install_patch.status):
        refuses(action, folder, message)


def test_damaged_additions_are_refused_and_crlf_is_not(package: Path, tmp_path: Path, monkeypatch: Any) -> None:
    files = tmp_path / "transformers_files"
    shutil.copytree(install_patch.ADDITIONS, files)
    targets = find_targets(package)
    monkeypatch.setattr(install_patch, "ADDITIONS", files)
    (files / UTILS).write_bytes((files / UTILS).read_bytes().replace(b"\n", b"\r\n"))
    assert find_targets(package) == targets
    for damage in (lambda: (files / LLAMA).write_text("x = 1\n"), (files / LLAMA).unlink):
        damage()
        refuses(install, package, f"{files / LLAMA} is missing or damaged; get a fresh copy of llm-interpret")


def test_system_without_file_locks_is_refused(package: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(install_patch, "fcntl", None)
    assert main(["--transformers", str(package)]) == 2
    reason = "this needs the file locks of Linux or macOS; interpret.attach(model) needs no patch"
    assert capsys.readouterr().err == f"refused, nothing changed: {reason}\n"
