"""Nothing of a model's files is executed, and folders that do not hold a model are named for what they are."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaForCausalLM

from interpret.errors import ModelError
from interpret.models import safety
from interpret.models.opening import load
from reference.messages import check_message, one_message_at_most

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
IDS = torch.tensor([[1, 2, 0]])


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that hostile code would create."""
    return tmp_path / "executed"


@pytest.fixture(autouse=True)
def _consent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer yes to everything: transformers would ask on the terminal whether to run a model's code."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def code(marker: Path) -> str:
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Mine:\n    pass\n"


def own_config(folder: Path, marker: Path) -> str:
    (folder / "configuration_mine.py").write_text(code(marker))
    mapped = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    change(folder / "config.json", model_type="mine", auto_map=mapped)
    return "model' needs Python code of its own (configuration_mine.py, modeling_mine.py), which is not run"


def own_model_without_config_class(folder: Path, marker: Path) -> str:
    (folder / "modeling_mine.py").write_text(code(marker))
    change(folder / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    return "model' needs Python code of its own (modeling_mine.py), which is not run"


def own_tokenizer(folder: Path, marker: Path) -> str:
    (folder / "tokenization_mine.py").write_text(code(marker))
    (folder / "tokenizer.json").unlink()
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="MyTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_mine.MyTokenizer", None]},
    )
    return "model' needs Python code of its own (tokenization_mine.py), which is not run"


@pytest.mark.parametrize("make", [own_config, own_model_without_config_class, own_tokenizer])
def test_python_files_of_a_model_are_not_run(make: Callable[[Path, Path], str], folder: Path, marker: Path) -> None:
    message = make(folder, marker)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert message in str(caught.value)
    check_message(caught.value)
    assert not marker.exists()


def test_code_beside_a_model_that_transformers_knows_is_ignored(
    folder: Path, marker: Path, original: LlamaForCausalLM
) -> None:
    (folder / "modeling_mine.py").write_text(code(marker))
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    generate = folder / "custom_generate" / "generate.py"
    generate.parent.mkdir()
    generate.write_text(code(marker))
    said: list[str] = []
    model, _ = load(folder, say=said.append)
    assert said[-1] == "opened with the code of transformers; that of the model (modeling_mine.py) is not run"
    assert type(model) is LlamaForCausalLM
    assert torch.equal(model(IDS).logits, original(IDS).logits)
    assert not marker.exists()


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def in_bin(folder: Path, weights: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def in_plain_pickle(folder: Path, weights: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights))


def in_shards(folder: Path, weights: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def in_shards_called_safe(folder: Path, weights: dict[str, Any]) -> None:
    in_shards(folder, weights)
    (folder / "pytorch_model.bin.index.json").rename(folder / "model.safetensors.index.json")


WAYS = [in_bin, in_plain_pickle, in_shards, in_shards_called_safe]


@pytest.mark.parametrize("setting", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_pickle_is_refused_and_not_run(
    way: Callable[[Path, dict[str, Any]], None],
    setting: str | None,
    original: LlamaForCausalLM,
    folder: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if setting:
        monkeypatch.setenv(setting, "1")
    way(folder, {**original.state_dict(), "more": Hostile(f"touch {marker}")})
    before = dict(os.environ)
    with pytest.raises(ModelError, match=r"^cannot open the model '.*model': its weights are not only tensors \(.*\)"):
        load(folder)
    assert not marker.exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Weights only load failed. Set `weights_only` to `False`.\n\nblocked.\nCheck the documentation",
            " (blocked.)",
        ),
        (
            "Weights only load failed.\nPlease file an issue: WeightsUnpickler error: \n\nOperand 149\n",
            " (Operand 149)",
        ),
        ("Weights only load failed. Set `weights_only` to `False`.", ""),
    ],
)
def test_the_advice_to_run_a_pickle_is_not_repeated(said: str, reason: str) -> None:
    wanted = f"its weights are not only tensors{reason}, and nothing else in them is read or run"
    assert str(safety.refusal_of_pickle(pickle.UnpicklingError(said))).startswith(wanted)


def test_the_hostile_pickle_would_have_run(marker: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(f"touch {marker}")))
    assert marker.exists()


def test_a_hostile_pickle_beside_safetensors_is_not_read(folder: Path, marker: Path) -> None:
    torch.save({"a": Hostile(f"touch {marker}")}, folder / "pytorch_model.bin")
    load(folder)
    assert not marker.exists()


@pytest.mark.parametrize("way", [in_bin, in_shards, in_shards_called_safe])
def test_before_torch_2_6_only_safetensors_are_opened(
    way: Callable[[Path, dict[str, Any]], None],
    original: LlamaForCausalLM,
    folder: Path,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(safety, "READS_PICKLES", False)
    load(saved)
    way(folder, original.state_dict())
    with pytest.raises(
        ModelError, match=r"has no weights in the safetensors format, and torch .* update torch to 2\.6"
    ):
        load(folder)


def test_before_torch_2_6_the_hub_is_asked_for_safetensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert safety.loading_safely() == {"trust_remote_code": False}
    monkeypatch.setattr(safety, "READS_PICKLES", False)
    assert safety.loading_safely() == {"trust_remote_code": False, "use_safetensors": True}


@pytest.mark.parametrize("where", ["tokenizer", "config", "type"])
def test_the_pickled_vocabulary_of_transformer_xl_is_not_opened(where: str, folder: Path, marker: Path) -> None:
    (folder / "vocab.pkl").write_bytes(pickle.dumps(Hostile(f"touch {marker}")))
    if where == "tokenizer":
        change(folder / "tokenizer_config.json", tokenizer_class="TransfoXLTokenizer")
    elif where == "config":
        change(folder / "tokenizer_config.json", tokenizer_class=None)
        change(folder / "config.json", tokenizer_class="TransfoXLTokenizer")
    else:
        (folder / "tokenizer_config.json").unlink()
        change(folder / "config.json", model_type="transfo-xl")
    with pytest.raises(ModelError):
        load(folder)
    assert not marker.exists()


# ------------------------------------------------------------------------------------- what does not hold a model


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs_are_named(name: str, folder: Path) -> None:
    (folder / name).write_text(POINTER)
    message = rf"holds Git LFS pointers in place of files \({name}\), a few lines of text each: .* Run 'git lfs pull'"
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_a_gguf_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text(POINTER)
    with pytest.raises(ModelError, match=r"a\.gguf' is a Git LFS pointer, a few lines of text: .* Run 'git lfs pull'"):
        load(tmp_path / "a.gguf")


# ------------------------------------------------------------------------------------- configurations of any content

ODD = ["[" * 100_000, "1" * 5000, "[]", "3", '"x"', "null", "\ufeff{}", '{"model_type": "llama", "model_type": 3}']


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("content", ODD, ids=lambda text: text[:12])
def test_a_file_of_any_content_is_one_message(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with one_message_at_most():
        load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0}, {"hidden_size": "x"}, {"vocab_size": -1}, {"num_hidden_layers": []},
        {"model_type": 3}, {"model_type": ["llama"]}, {"auto_map": 3}, {"auto_map": [1]}, {"rope_scaling": 3},
        {"hidden_act": {}}, {"architectures": 3}, {"quantization_config": 3}, {"vocab_size": 10**400},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_of_any_values_is_one_message(values: dict[str, Any], folder: Path) -> None:
    change(folder / "config.json", **values)
    with one_message_at_most():
        load(folder)


def test_names_are_not_repeated_at_length() -> None:
    with pytest.raises(ModelError) as caught:
        load("./" + "x" * 100_000)
    check_message(caught.value)


def test_the_type_of_an_unusual_error_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", broken)
    with pytest.raises(ModelError, match="cannot open the model .*: ZeroDivisionError: division by zero") as caught:
        load(saved)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
