"""install_patch.py, always on a copy of transformers: the environment's own files must stay as they are."""

import hashlib
import inspect
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaForCausalLM, MaxLengthCriteria, StoppingCriteriaList
from transformers.models.llama.modeling_llama import LlamaModel

import install_patch
from install_patch import BEGIN, END, STOCK_SHA256, find_targets, install, main, restore
from interpret.surgery import generation as engine
from reference.stock_transformers import (
    LLAMA,
    MARK,
    OWN,
    REPO,
    UTILS,
    content,
    make_package,
    own_files,
    own_stock,
    python,
    run,
)
from reference.tiny import tiny_model

IDS = torch.tensor([[5, 17, 3, 80, 41, 9], [60, 2, 33, 7, 12, 90]])


@pytest.fixture(autouse=True, scope="module")
def own_transformers_stays_as_it_is() -> Iterator[None]:
    before = own_files()
    yield
    assert own_files() == before


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
    assert json.loads(Path(attached, "sources.json").read_text(encoding="utf-8")) == stock_sources()
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


@pytest.mark.parametrize(
    ("engine", "ours"),
    [
        ("from interpret.surgery.generation import forward_interpret, generate_interpret\n", True),
        ("def forward_interpret(model, *args, insert_info=None, **kwargs):\n    pass\n", True),  # of earlier versions
        ("def generate(explanation):\n    pass\n", False),
    ],
)
def test_our_package_is_known_by_its_engine_also_that_of_earlier_versions(
    tmp_path: Path, engine: str, ours: bool
) -> None:
    (tmp_path / "generation.py").write_text(engine)
    assert install_patch.is_ours(tmp_path) is ours


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
        before = states(package)
        capsys.readouterr()
        assert action(package) == 0
        assert capsys.readouterr().out.startswith(f"{said} in {package}; nothing changed\n")
        assert states(package) == before


def states(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return what a change of a file or a folder changes; reading changes only the time of access."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {path: (one.st_mode, one.st_ino, one.st_size, one.st_mtime_ns) for path, one in found.items()}


def test_states_tell_a_change_from_a_reading(package: Path) -> None:
    path, before = package / LLAMA, states(package)
    os.utime(path, ns=(path.stat().st_atime_ns + 10**9, path.stat().st_mtime_ns))
    assert states(package) == before
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    assert states(package) != before


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
    said = sorted(run.communicate(timeout=600)[0].splitlines()[0].partition(" ")[0] for run in runs)
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


# As a script and as a command


def test_script_needs_nothing_installed_and_imports_no_transformers(package: Path, tmp_path: Path) -> None:
    script = REPO / "install_patch.py"
    done = python("-S", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"refused, nothing changed: {sys.executable} has no transformers; run `pip install -e '.[patch]'` "
        "(Python 3.11 or 3.12), or name its folder with --transformers DIR\n",
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
