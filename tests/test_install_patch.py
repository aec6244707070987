"""install_patch.py, always on a copy of transformers: the environment's own files must stay as they are."""

import errno
import hashlib
import inspect
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.tiny import tiny_model
from torch.testing import assert_close
from transformers import LlamaForCausalLM, MaxLengthCriteria, StoppingCriteriaList
from transformers.models.llama.modeling_llama import LlamaModel

import install_patch
from install_patch import BEGIN, END, STOCK_SHA256, Refused, find_targets, install, main, restore
from interpret import generation as engine

REPO = Path(__file__).resolve().parents[1]
OWN = Path(find_spec("transformers").origin).parent
UTILS, LLAMA = STOCK_SHA256
IDS = torch.tensor([[5, 17, 3, 80, 41, 9], [60, 2, 33, 7, 12, 90]])
MARK = b"\n\n" + BEGIN


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Read every file under a folder, bytecode left out, with its permission bits."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o7777) for path in files}


def own_stock(name: str) -> bytes:
    """Return the stock bytes of a file of the environment, which may be patched, as after `make demo`."""
    stock = (OWN / name).read_bytes().partition(MARK)[0]
    assert hashlib.sha256(stock).hexdigest() == STOCK_SHA256[name]
    return stock


def make_package(site: Path) -> Path:
    """Make a transformers of the two files only, which says so when it is imported."""
    for name in STOCK_SHA256:
        (site / "transformers" / name).parent.mkdir(parents=True)
        (site / "transformers" / name).write_bytes(own_stock(name))
    (site / "transformers/__init__.py").write_text('__version__ = "4.34.0"\nraise RuntimeError("imported")\n')
    return site / "transformers"


def python(*arguments: object, path: tuple[Path, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a new Python that looks for modules in `path` first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-B", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **options)


def run(*arguments: object) -> tuple[int, str]:
    """Run install_patch as its users do, and return the exit code and all it printed."""
    done = python(REPO / "install_patch.py", *arguments)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(autouse=True, scope="module")
def own_transformers_stays_as_it_is() -> Iterator[None]:
    def look() -> list[tuple[str, int]]:
        paths = [OWN / name for name in STOCK_SHA256]
        return [(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in paths]

    before = look()
    yield
    assert look() == before


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "site")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole transformers, linked to the environment's, patched over misleading bytecode."""
    site = tmp_path_factory.mktemp("library")
    linked = site.stat().st_dev == OWN.stat().st_dev
    # Where the environment is patched, so would the copy be: its two files are made anew.
    patch = shutil.ignore_patterns("*.llm-interpret-*", ".llm-interpret*")
    copy = os.link if linked else shutil.copy2
    shutil.copytree(OWN, site / "transformers", copy_function=copy, ignore=patch)
    for name in STOCK_SHA256:
        source = site / "transformers" / name
        source.unlink()
        source.write_bytes(own_stock(name))
        compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        compiled.unlink(missing_ok=True)
        # Python runs bytecode of this kind whatever the size and time of the source.
        always = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(compiled), invalidation_mode=always, doraise=True)
    assert main(["install", "--transformers", str(site / "transformers")]) == 0
    return site


# The patched transformers at work


def test_patched_methods_equal_stock_ones_and_attached_ones(library: Path, tmp_path: Path) -> None:
    model = engine.attach(tiny_model("llama"))
    torch.save(surgery_results(model), tmp_path / "attached.pt")
    engine.detach(model)
    names = ("forward_interpret", "generate_interpret", "greedy_search_interpret")
    assert not any(name in vars(owner) for owner in (model, model.model) for name in names)
    (tmp_path / "sources.json").write_text(json.dumps(stock_sources()))
    code = "import sys, test_install_patch as tests; tests.check_patched(sys.argv[1])"
    done = python("-c", code, tmp_path, path=(library, REPO / "tests", REPO), cwd=library)
    assert done.returncode == 0, done.stderr


def check_patched(attached: str) -> None:
    """Compare in the new process: with the stock sources, calls, and what attached methods gave."""
    assert Path.cwd() / "transformers" == OWN
    assert json.loads(Path(attached, "sources.json").read_text()) == stock_sources()
    model = tiny_model("llama")
    assert "forward_interpret" not in vars(model)
    assert_same(surgery_results(model), torch.load(Path(attached, "attached.pt")))
    past = {"past_key_values": model(IDS[:, :4], use_cache=True).past_key_values}
    shown = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
    for ids, options in ((IDS, {**shown, "labels": IDS}), (IDS, {"return_dict": False}), (IDS[:, 4:], past)):
        assert_same(model.forward_interpret(ids, insert_info=None, **options), model(ids, **options))
    assert_same(model.model.forward_interpret(IDS, **shown), model.model(IDS, **shown))
    assert_same(model.generate_interpret(IDS, max_new_tokens=5), model.generate(IDS, max_new_tokens=5))
    assert_same(model.greedy_search_interpret(IDS, **until_ten()), model.greedy_search(IDS, **until_ten()))


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    assert_close(ours, theirs, rtol=0, atol=0)


def stock_sources() -> list[str]:
    names = ("forward", "generate", "greedy_search")
    methods = [LlamaModel.forward, *(getattr(LlamaForCausalLM, name) for name in names)]
    return [inspect.getsource(method) for method in methods]


def until_ten() -> dict[str, Any]:
    return {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(10)]), "pad_token_id": 0}


def surgery_results(model: Any) -> list[Any]:
    """Call every method with a plan for the second prompt."""
    vectors = torch.linspace(-3, 3, 64).reshape(1, 2, 32)
    plan = [None, {2: ([1, -1], vectors), "overlay_strength": 0.7, "replacing_mode": "normalized"}]
    output, around = model.forward_interpret(IDS, insert_info=plan, output_pre_mlp_states=True, use_cache=True)
    assert (output.logits != model(IDS).logits).flatten(1).any(1).tolist() == [False, True]
    return [
        dict(output),
        around,
        dict(model.model.forward_interpret(IDS, insert_info=plan)),
        model.generate_interpret(IDS, insert_info=plan, max_new_tokens=4, num_beams=2),
        model.greedy_search_interpret(IDS, insert_info=plan, **until_ten()),
    ]


MISSING = """
import sys
from transformers import LlamaForCausalLM, LlamaModel
model, base = (object.__new__(kind) for kind in (LlamaForCausalLM, LlamaModel))
calls = [base.forward_interpret, model.forward_interpret, model.generate_interpret]
for sys.path[0] in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "interpret"]:
        del sys.modules[name]
    for call in (*calls, lambda: model.greedy_search_interpret(None)):
        try:
            call()
        except ImportError as error:
            print(error)
"""


def test_call_without_our_interpret_says_what_is_wrong(library: Path, tmp_path: Path) -> None:
    none, foreign, broken = (tmp_path / name for name in ("none", "foreign", "broken"))
    for folder in (foreign, broken):
        (folder / "interpret").mkdir(parents=True)
        (folder / "interpret/__init__.py").touch()
    (broken / "interpret/generation.py").write_text("import not_there")
    # Without site-packages' .pth files (-S), an editable installation of ours is not found.
    done = python("-S", "-c", MISSING, none, foreign, broken, path=(library, OWN.parent), cwd=tmp_path)
    message = (
        "this method needs the package `interpret` of llm-interpret, and {}. Run `pip install llm-interpret` in "
        "an environment that holds no other `interpret` (interpret-core installs one)."
    )
    found = f"the one found is not it: {foreign}/interpret/__init__.py"
    # Ours, in want of something else: the plain message is the right one.
    messages = [message.format("there is none"), message.format(found), "No module named 'not_there'"]
    assert done.stdout.splitlines() == [line for line in messages for _ in range(4)], done.stderr


# Installing and restoring


def test_install_appends_the_block_and_keeps_bits_and_backup(package: Path, capsys: Any) -> None:
    (package / UTILS).chmod(0o640)
    (package / LLAMA).chmod(0o604)
    before = content(package)
    assert main(["--transformers", str(package)]) == 0
    after = content(package)
    for name in STOCK_SHA256:
        stock, bits = before[name]
        text = (REPO / "transformers_files" / name).read_bytes()
        assert after[name] == (stock + b"\n\n" + text[text.index(BEGIN) :], bits)
        assert after[f"{name}.llm-interpret-stock"] == (stock, bits)
    assert len(after) == len(before) + 2
    assert capsys.readouterr().out == (
        f"patched {package / UTILS}\npatched {package / LLAMA}\n"
        f"backup  {package / UTILS}.llm-interpret-stock\nbackup  {package / LLAMA}.llm-interpret-stock\n"
        f"installed in transformers 4.34.0 in {package}\ninterpret: {REPO / 'interpret/__init__.py'}\n"
    )


@pytest.mark.parametrize("lost", [(), (UTILS,), (UTILS, LLAMA)])
def test_restore_gives_every_byte_back(package: Path, lost: tuple[str, ...]) -> None:
    before = content(package)
    install(package)
    for name in lost:
        (package / f"{name}.llm-interpret-stock").unlink()
    assert restore(package) == 0
    assert content(package) == before


def test_second_run_changes_nothing_and_says_so(package: Path, capsys: Any) -> None:
    for action, said in ((install, "already installed"), (restore, "not installed")):
        action(package)
        before = {path: path.stat() for path in package.rglob("*")}
        capsys.readouterr()
        assert action(package) == 0
        assert capsys.readouterr().out.startswith(f"{said} in {package}; nothing changed\n")
        assert {path: path.stat() for path in before} == before
        assert set(package.rglob("*")) == set(before)


def test_files_linked_into_another_environment_stay_stock(package: Path, tmp_path: Path) -> None:
    for name in STOCK_SHA256:
        os.link(package / name, tmp_path / Path(name).name)
    for action in (install, restore):
        action(package)
        for name, sha256 in STOCK_SHA256.items():
            other = tmp_path / Path(name).name
            assert hashlib.sha256(other.read_bytes()).hexdigest() == sha256
            assert not other.samefile(package / name)


def test_bytecode_of_every_python_goes_and_only_of_these_files(package: Path) -> None:
    cache = package / "generation/__pycache__"
    cache.mkdir()
    stale = ["utils.cpython-38.pyc", "utils.cpython-311.opt-1.pyc", "utils.pypy310.pyc"]
    kept = ["tf_utils.cpython-311.pyc", "utils_more.cpython-311.pyc"]
    for action in (install, restore):
        for name in stale + kept:
            (cache / name).touch()
        action(package)
        assert sorted(path.name for path in cache.iterdir()) == kept


def test_block_of_another_release_is_named_updated_and_taken_away(package: Path) -> None:
    stock = content(package)
    for name in STOCK_SHA256:
        (package / name).write_bytes(stock[name][0] + MARK + b" (early)\nx = 1\n" + END)
    said = run("status", "--transformers", package)[1]
    assert said.endswith("patched by another release; `install` brings it up to date\n")
    early = content(package)
    install(package)
    assert all(target.read()[0] == "patched" for target in find_targets(package))
    for name in STOCK_SHA256:
        (package / name).write_bytes(early[name][0])
    restore(package)
    assert content(package) == stock


# Runs that are killed, and runs at the same time

KILLED_RUN = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import install_patch
steps = int(sys.argv[4])
def die_at_the_step(event, args):
    global steps
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.rename", "os.remove", "os.chmod", "os.chown"):
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die_at_the_step)
sys.exit(install_patch.main([sys.argv[2], "--transformers", sys.argv[3]]))
"""


@pytest.mark.parametrize("action", [install, restore])
def test_run_killed_at_any_step_can_be_finished_either_way(tmp_path: Path, action: Any, capsys: Any) -> None:
    package = make_package(tmp_path / "site")
    stock = content(package)
    install(package)
    patched = content(package)
    stale = package / "generation/__pycache__/utils.cpython-311.pyc"
    stale.parent.mkdir()
    met = set()
    for step in range(100):
        write(package, stock if action is install else patched)
        stale.write_bytes(b"made from the file as it was")
        done = python("-S", "-c", KILLED_RUN, REPO, action.__name__, package, step)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        states = [target.read()[0] for target in find_targets(package)]
        assert set(states) <= {"stock", "patched"}, "a file was left in pieces"
        assert states[0] == ("stock" if action is install else "patched") or not stale.exists()
        capsys.readouterr()
        code = main(["status", "--transformers", str(package)])
        met.add((*states, code, capsys.readouterr().out.splitlines()[-1]))
        left = content(package)
        install(package)
        assert content(package) == patched
        write(package, left)
        restore(package)
        assert content(package) == stock
    half = (1, "half installed; `install` or `restore` finishes it")
    assert {("stock", "stock", *half), ("patched", "stock", *half)} < met
    assert met <= {
        ("stock", "stock", 1, "not installed"),
        ("stock", "stock", *half),
        ("patched", "stock", *half),
        ("patched", "patched", *half),
        ("patched", "patched", 0, "installed"),
    }


def write(folder: Path, files: dict[str, tuple[bytes, int]]) -> None:
    """Make the files under a folder what `content` returned once."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    for name, (data, bits) in files.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(bits)


def test_two_installs_at_once_take_turns(package: Path) -> None:
    command = [sys.executable, "-B", str(REPO / "install_patch.py"), "--transformers", str(package)]
    with install_patch.locked(package / install_patch.LOCK_NAME):
        runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        waiting = f"waiting for another install_patch, which holds {package / install_patch.LOCK_NAME}\n"
        assert [run.stdout.readline() for run in runs] == [waiting, waiting]
        assert find_targets(package)[0].read()[0] == "stock"
    said = sorted(run.communicate(timeout=20)[0].splitlines()[0].partition(" ")[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert said == ["already", "patched"]
    assert len(content(package)) == 5


def test_lock_on_a_file_its_last_holder_removed_is_none(tmp_path: Path, monkeypatch: Any) -> None:
    path, lock_now = tmp_path / "lock", install_patch.fcntl.flock

    def lock_when_the_holder_left(handle: Any, flags: int) -> None:
        path.unlink()
        path.touch()  # by a third run, which holds this one
        lock_now(handle, flags)

    monkeypatch.setattr(install_patch.fcntl, "flock", lock_when_the_holder_left)
    assert install_patch.try_lock(path) is None


# Refusals: each changes nothing


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
        "run `pip install transformers==4.34.0` there, or leave it and call `interpret.attach(model)`, which "
        "gives one model the same methods and changes no file"
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
        own = "python -m venv venv && venv/bin/pip install transformers==4.34.0"
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


# As a script and as a command


def test_script_needs_nothing_installed_and_imports_no_transformers(package: Path, tmp_path: Path) -> None:
    script = REPO / "install_patch.py"
    done = python("-S", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"refused, nothing changed: {sys.executable} has no transformers; run `pip install transformers==4.34.0`, "
        "or name its folder with --transformers DIR\n",
    )
    done = python("-S", script, path=(package.parent,), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    no_interpret = f"interpret: not found by {sys.executable}; the methods need it: pip install llm-interpret"
    assert done.stdout.splitlines()[-2:] == [f"installed in transformers 4.34.0 in {package}", no_interpret]
    done = python("-S", script, "status", path=(package.parent,), cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "installed")


def test_command_of_the_wheel_installs_and_restores(package: Path, tmp_path: Path) -> None:
    unwanted = (".*", "tests", "docs", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(REPO, tmp_path / "source", ignore=shutil.ignore_patterns(*unwanted))
    pip = ("-m", "pip", "--quiet", "--isolated", "--disable-pip-version-check")
    offline = ("--no-index", "--no-deps")
    wheel = python(*pip, "wheel", *offline, "--no-build-isolation", tmp_path / "source", "-w", tmp_path)
    assert wheel.returncode == 0, wheel.stderr
    put = python(*pip, "install", *offline, "--target", tmp_path / "bare", *tmp_path.glob("*.whl"))
    assert put.returncode == 0, put.stderr
    before = content(package)
    assert (tmp_path / "bare/transformers_files" / UTILS).is_file()
    for action, code in (("install", 0), ("status", 0), ("restore", 0), ("status", 1)):
        command = (tmp_path / "bare/bin/interpret-patch", action, "--transformers", package)
        done = python(*command, path=(tmp_path / "bare",), cwd=tmp_path)
        assert done.returncode == code, done.stderr
        if action != "restore":
            assert f"interpret: {tmp_path}/bare/interpret/__init__.py\n" in done.stdout
    assert content(package) == before
