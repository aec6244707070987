"""Every command accepts what ``load`` opens besides plain models: folders of adapters, and multimodal models."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers

from reference.commands import fact_rows, json_file, run, saved_model
from reference.kinds import MORE_KINDS

COMMANDS = {
    "selfie": "--examples prompts.json --layers 1 --tokens last --new-tokens 3",
    "trace": "--facts facts.json --no-filter --samples 2",
    "trace approximately": "--facts facts.json --no-filter --samples 2 --method approximate",
    "locate": "--facts facts.json --no-filter --attributed-fn probability",
    "attribute": "--prompt Paris --target is",
    "probe lens": "--examples prompts.json",
    "probe logits": "--examples prompts.json",
    "probe heads": "--examples prompts.json",
    "probe neurons": "--pairs pairs.json --layers 1 --permutations 10",
}
MODELS = {
    "adapter": pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed: make does"),
    "gemma3_multimodal": pytest.mark.skipif(
        "gemma3_multimodal" not in MORE_KINDS, reason=f"not part of transformers {transformers.__version__}"
    ),
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=mark) for name, mark in MODELS.items()])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter, or of a multimodal model."""
    place = tmp_path_factory.mktemp("model")
    if request.param != "adapter":
        return saved_model(place, request.param)
    import peft

    base = saved_model(place / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    wrapper = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    wrapper.peft_config["default"].base_model_name_or_path = str(base)
    wrapper.save_pretrained(place / "adapter")
    return place / "adapter"


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_its_table(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    json_file(tmp_path / "prompts.json", {"examples": [{"prompt": "I love pizza", "category": "mine"}]})
    json_file(tmp_path / "facts.json", fact_rows(1))
    pairs = [{"true": f"{word} is", "false": f"{word} was"} for word in ("Paris", "Anna", "pizza", "message")]
    json_file(tmp_path / "pairs.json", {"pairs": pairs})
    words = [*command.removesuffix(" approximately").split(), *COMMANDS[command].split()]
    assert run(*words, "--model", folder, "--device", "cpu", "--output", "run") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"]["rows"] > 0


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")
def test_the_check_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", folder, "--device", "cpu") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all outputs equal those of the stock model"
