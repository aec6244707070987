"""Fixtures of all tests: tiny models that tests must leave unchanged, and one saved in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.models.opening import load
from interpret.storage import cache
from reference.combinations import pytest_addoption, pytest_collection_modifyitems
from reference.commands import saved_model
from reference.kinds import KINDS
from reference.tiny import hooks_on, tiny_model

# The tensors are tiny, so threads would slow the tests down. The environment variable applies to processes started by
# tests: with another number of threads, sums are computed in another order, which changes the last digits.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A busy or slow machine is not a failure.
_ANY_MACHINE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("the same examples", derandomize=True, **_ANY_MACHINE)
settings.register_profile("other examples each time", max_examples=250, **_ANY_MACHINE)

# pytest finds these hooks by their names.
__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis draw the same examples each time, or with ``--all-combinations`` others, and more."""
    drawn = config.getoption("all_combinations")
    settings.load_profile("other examples each time" if drawn else "the same examples")


@pytest.fixture(scope="session", autouse=True)
def _hashes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the hashes of the tests' files out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_ENTRIES", str(tmp_path_factory.mktemp("hashes")))  # absolute, so the cache is left out
        yield


@contextmanager
def _lent(kind: str) -> Iterator[PreTrainedModel]:
    """Yield a new model; afterwards check that it has no added hooks and its original weights."""
    model = tiny_model(kind)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = hooks_on(model)
    yield model
    assert hooks_on(model) == hooks, "hooks were left on the model"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name].to(tensor.dtype)), f"{name} was changed"


@pytest.fixture(params=list(KINDS))
def family_model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    """A model of each kind in turn; the test must leave no hooks on it and its weights unchanged."""
    with _lent(request.param) as model:
        yield model


@pytest.fixture
def llama() -> Iterator[PreTrainedModel]:
    """A Llama model; the test must leave no hooks on it and its weights unchanged."""
    with _lent("llama") as model:
        yield model


@pytest.fixture
def gpt2() -> Iterator[PreTrainedModel]:
    """A GPT-2 model; the test must leave no hooks on it and its weights unchanged."""
    with _lent("gpt2") as model:
        yield model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama model and a tokenizer with a chat template; tests must not change it."""
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(model_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of ``model_folder``."""
    return load(str(model_folder), device="cpu")
