"""A package index, if there is one; and what is installed from this clone."""

import os
import subprocess

import pytest

from reference.environments import PIP
from reference.wheel import build_wheel, copy_clone


@pytest.fixture(scope="session", autouse=True)
def package_index():
    """Skip the tests where pip finds no package index; CI must have one."""
    asked = [*PIP, "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "transformers==4.34.0"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        reason = f"no package index: {done.stderr.strip().splitlines()[-1]}"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    return copy_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def wheel(clone, tmp_path_factory):
    return build_wheel(clone, tmp_path_factory.mktemp("wheel"))
