"""For the Pythons on which no test runs, pip finds a file of every package; torch is not asked for again."""

import zipfile

import pytest

from reference.environments import PIP, QUIET, resolved, run

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("pythons")]


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory):
    """A wheel that pip takes for torch, without the packages for CUDA that torch asks for."""
    file = tmp_path_factory.mktemp("torch") / "torch-2.13.0+alone-py3-none-any.whl"
    info = "torch-2.13.0+alone.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+alone\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return file


@pytest.mark.parametrize(
    ("python", "extra", "transformers"),
    [("3.12", "", "5."), ("3.12", "[patch]", "4.34.0"), ("3.13", "", "5.")],
)
def test_every_package_has_a_file_for(python, extra, transformers, wheel, torch_alone, tmp_path):
    elsewhere = ["--target", tmp_path, "--python-version", python, "--only-binary=:all:", "--ignore-installed"]
    done = run([*PIP, "install", *QUIET, "--dry-run", "--report", "-", *elsewhere, torch_alone, f"{wheel}{extra}"])
    assert done.returncode == 0, done.stderr
    found = resolved(done.stdout)
    assert found["transformers"].startswith(transformers)
    assert found["torch"] == "2.13.0+alone"
    assert {"numpy", "pandas", "tokenizers", "safetensors"} <= set(found)
