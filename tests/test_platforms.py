"""The package needs nothing that only Linux and macOS have; ``make lint`` checks its types for Windows as well."""

import ast
import os
import subprocess
import sys

import pytest
import torch

from interpret.device import total_memory
from reference.commands import json_file
from reference.house import MODULES

UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_no_module_imports_what_only_unix_has():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not UNIX_ONLY & {alias.name for alias in node.names}, module
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in UNIX_ONLY, module


def test_the_memory_of_the_machine_is_what_the_system_says():
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert total_memory(torch.device("cpu")) == pytest.approx(pages, rel=0.01)


# How Windows differs, for the code of this package: no fcntl, no os.sysconf, folders cannot be opened, only files that
# are open for writing can be flushed, and a newline is written as two bytes unless the file is binary. The libraries
# have code of their own for Windows, so for them nothing changes.
LIKE_WINDOWS = f"""
import builtins, errno, fcntl, io, os, sys

def of_interpret():
    return sys._getframe(2).f_globals.get("__name__", "").startswith("interpret")

def stand_in(owner, name):
    def replace(function):
        function.real = getattr(owner, name)
        setattr(owner, name, function)
        return function
    return replace

@stand_in(builtins, "__import__")
def import_(name, *more, **options):
    if name.split(".")[0] in {UNIX_ONLY!r} and of_interpret():
        raise ImportError(name)
    return import_.real(name, *more, **options)

@stand_in(os, "sysconf")
def sysconf(name):
    if of_interpret():
        raise AttributeError("sysconf")
    return sysconf.real(name)

os.O_BINARY, texts = 1 << 30, set()

@stand_in(os, "open")
def open_(path, flags, *more, **options):
    if of_interpret() and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    descriptor = open_.real(path, flags & ~os.O_BINARY, *more, **options)
    (texts.add if of_interpret() and not flags & os.O_BINARY else texts.discard)(descriptor)
    return descriptor

@stand_in(os, "write")
def write(descriptor, data):
    if descriptor in texts:
        write.real(descriptor, bytes(data).replace(b"\\n", b"\\r\\n"))
        return len(data)
    return write.real(descriptor, data)

@stand_in(os, "fsync")
def fsync(file):
    if of_interpret() and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    fsync.real(file)

@stand_in(io, "open")
def text_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more):
    if "b" not in mode and newline is None and set(mode) & set("wax+"):
        newline = "\\r\\n"
    return text_open.real(file, mode, buffering, encoding, errors, newline, *more)
"""
COMMANDS = """
import sys
from interpret.cli import main
for line in {lines!r}:
    try:
        main(line)
    except SystemExit as exit_:
        assert not exit_.code, line
"""


@pytest.fixture(scope="module")
def results(model_folder, tmp_path_factory):
    """What the main job and its page are on this system, and where the system is like Windows."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = [{"prompt": "東京 is a city", "category": "mine"}, {"prompt": "Ein Café", "category": "mine"}]
    examples = json_file(folder / "examples.json", {"examples": prompts})
    found = {}
    for name, before in {"here": "", "like Windows": LIKE_WINDOWS}.items():
        run, page = folder / name / "run", folder / name / "page.html"
        quick = ["--layers", "1", "--new-tokens", "3", "--device", "cpu", "--model", model_folder]
        lines = [["selfie", "--examples", examples, "--output", run, *quick], ["report", run, "-o", page]]
        code = before + COMMANDS.format(lines=[[str(word) for word in line] for line in lines])
        # The encoding of a Western Windows, when the output goes into a file.
        encoding = {} if name == "here" else {"PYTHONIOENCODING": "cp1252"}
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | encoding, capture_output=True)
        assert done.returncode == 0, done.stderr.decode("cp1252")
        found[name] = {path.name: path.read_bytes() for path in (*run.iterdir(), page)}
    return found


@pytest.mark.parametrize("file", ["table.csv", "progress.jsonl"])
def test_the_main_job_gives_the_same_bytes_where_the_system_is_like_windows(file, results):
    assert results["like Windows"][file] == results["here"][file]


@pytest.mark.parametrize("file", ["manifest.json", "page.html"])
def test_files_that_hold_the_time_have_the_same_lines_there(file, results):
    there, here = (results[name][file] for name in ("like Windows", "here"))
    assert (there.count(b"\r"), there.count(b"\n")) == (0, here.count(b"\n"))
