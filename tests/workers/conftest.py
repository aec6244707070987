"""Fixtures of tests with real workers: a Ray cluster of two machines on loopback, which leaves no process behind."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference.house import TOP
from reference.workers import Gates, Machines, gone, offspring


@pytest.fixture(scope="package", autouse=True)
def ray_settings() -> Iterator[None]:
    """Keep Ray's files out of the user's folders, and its connections on this machine."""
    scratch = Path(tempfile.mkdtemp(prefix="interpret-"))  # pytest's own folders have too long names for a socket
    (scratch / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(scratch))
        patch.setenv("RAY_TMPDIR", str(scratch))
        patch.setenv("INTERPRET_CACHE", str(scratch / "cache"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv("PYTHONPATH", str(TOP))
        patch.setenv("PYTHONWARNINGS", "ignore")
        yield
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="package")
def head(ray_settings: None) -> Iterator[Machines]:
    """A cluster of one machine, to which tests add others."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    yield Machines(cluster)
    started = offspring(os.getpid())
    cluster.shutdown()
    gone(started)


@pytest.fixture
def two_machines(head: Machines) -> Machines:
    """Two machines; if a test kills the second, it is replaced for the next test."""
    if not head.added:
        head.add()
    return head


@pytest.fixture(scope="package")
def gate_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension ``gate.py``, in a folder of its own."""
    return Path(shutil.copy(Path(__file__).parent / "gate.py", tmp_path_factory.mktemp("gate")))


@pytest.fixture
def gates(tmp_path: Path, gate_file: Path, model_folder: Path) -> Iterator[Gates]:
    """A run of the probe ``gate``; its drivers are ended after the test."""
    found = Gates(tmp_path, gate_file, model_folder)
    yield found
    for driver in found.drivers:
        if driver.poll() is None:
            driver.kill()
        driver.wait()
