"""Memory while a model is opened: the weights are not copied in the dtype of their file."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from reference.toy_tokenizers import byte_level

OPENING = """
import sys
from interpret.models.opening import load

def resident(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

load(sys.argv[2], device="cpu")  # a tiny model: what is imported late is imported now
before = resident("VmRSS")
model, _ = load(sys.argv[1], device="cpu", dtype=sys.argv[3])
print(resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with a model in float32, and the bytes of its weights."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=420, hidden_size=1024, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=8,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, safe_serialization=True)
    byte_level(chat=True).save_pretrained(folder)
    return folder, sum(parameter.numel() * 4 for parameter in model.parameters())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.25), ("bfloat16", 0.5 + 1.25)])
def test_weights_are_held_once(dtype: str, most: float, stored: tuple[Path, int], model_folder: Path) -> None:
    """In float32 they stay in the mapped file; in bfloat16 they are half of it, beside the pages that were read."""
    folder, size = stored
    command = [sys.executable, "-W", "ignore", "-c", OPENING, str(folder), str(model_folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < most * size, f"{int(done.stdout.split()[-1]) / size:.2f} times the weights"
