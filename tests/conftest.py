"""Fixtures of every test: tiny models that must be given back as they were lent, and one in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from reference.commands import saved_model
from reference.tiny import KINDS, hooks_on, tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.models.opening import load

# Tensors here are tiny: threads cost more than they bring. The processes that tests start do as this one:
# another number of threads adds in another order, which shows in last digits.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@contextmanager
def _lent(kind: str) -> Iterator[PreTrainedModel]:
    """Lend a new model, and check when it comes back that nothing was left on it."""
    model = tiny_model(kind)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = hooks_on(model)
    yield model
    assert hooks_on(model) == hooks, "hooks were left on the model"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name].to(tensor.dtype)), f"{name} was changed"


@pytest.fixture(params=list(KINDS))
def family_model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    """A model of each family in turn; afterwards it must hold no hook and the same weights."""
    with _lent(request.param) as model:
        yield model


@pytest.fixture
def llama() -> Iterator[PreTrainedModel]:
    """A Llama; afterwards it must hold no hook and the same weights."""
    with _lent("llama") as model:
        yield model


@pytest.fixture
def gpt2() -> Iterator[PreTrainedModel]:
    """A GPT-2; afterwards it must hold no hook and the same weights."""
    with _lent("gpt2") as model:
        yield model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a chat tokenizer, saved; not to be changed."""
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(model_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Llama of the folder and its tokenizer."""
    return load(str(model_folder), device="cpu")
