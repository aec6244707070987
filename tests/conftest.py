"""Fixtures of every test: tiny models that must be given back as they were lent."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from reference.tiny import KINDS, hooks_on, tiny_model
from transformers import PreTrainedModel

# Tensors here are tiny: threads cost more than they bring.
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
