"""Building a model: weights without memory are not filled, all others are, and torch's compiler is not imported."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from interpret.models.unfilled import Unfilled


def test_weights_with_memory_are_filled_as_without_the_block() -> None:
    torch.manual_seed(0)
    wanted = nn.Linear(3, 4), nn.Embedding(5, 2)
    torch.manual_seed(0)
    with Unfilled():
        found = nn.Linear(3, 4), nn.Embedding(5, 2)
        assert not nn.init.ones_(torch.zeros(2)).eq(0).any()
    for one, other in zip(found, wanted, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_meta_tensors_keep_shape_and_dtype() -> None:
    with Unfilled():
        weight = torch.empty(3, 4, dtype=torch.bfloat16, device="meta")
        assert nn.init.kaiming_uniform_(weight) is weight
        assert nn.init.normal_(tensor=weight) is weight
        assert weight.uniform_() is weight
        layer = nn.Linear(3, 4, device="meta")
    assert (layer.weight.shape, layer.weight.is_meta) == ((4, 3), True)


def test_other_threads_are_left_alone() -> None:
    with Unfilled(), ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: torch._C._len_torch_function_stack()).result() == 0
        assert torch._C._len_torch_function_stack() == 1
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.skipif(find_spec("transformers.core_model_loading") is not None, reason="transformers 5 imports it itself")
def test_opening_a_model_does_not_import_the_compiler(model_folder: Path) -> None:
    script = (
        "import sys\nfrom interpret.models.opening import load\n"
        "load(sys.argv[1], device='cpu')\nassert 'torch._dynamo' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
