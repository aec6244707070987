"""Folders of adapters: opened with the model they were trained on, equal to the merged model, or refused by name."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedModel

from interpret.errors import InputError, ModelError
from interpret.models import adapters, extras, model_identity
from interpret.models.identity import weights
from interpret.models.opening import load, opening_of
from reference.agreement import attributed, interpreted, lens, shares, traced
from reference.messages import one_message_at_most
from reference.tiny import wide_model
from reference.toy_tokenizers import save_words

HAS_PEFT = importlib.util.find_spec("peft") is not None
needs_peft = pytest.mark.skipif(not HAS_PEFT, reason="peft is not installed: make installs it")
IDS = torch.arange(18).reshape(2, 9)  # [B, T]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def lora(**more: Any) -> Any:
    import peft

    return peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, **more)


def trained(saved: Path, configuration: Any, folder: Path | None = None, **options: Any) -> Any:
    """A wrapper of PEFT around the saved model, with random adapters; it is saved if a folder is given."""
    import peft

    torch.manual_seed(1)
    wrapper = peft.get_peft_model(LlamaForCausalLM.from_pretrained(saved), configuration).eval()
    wrapper.peft_config["default"].base_model_name_or_path = str(saved)
    if folder is not None:
        wrapper.save_pretrained(folder, **options)
    return wrapper


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """The folder of a LoRA adapter of the saved model."""
    trained(saved, lora(), tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# ------------------------------------------------------------------------------------------- what is opened


@needs_peft
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_gives_the_logits_of_the_merged_model(kind: str, saved: Path, tmp_path: Path) -> None:
    wrapper = trained(saved, lora(), tmp_path / "adapter", safe_serialization=kind == "safetensors")
    merged = wrapper.merge_and_unload()
    model, tokenizer = load(tmp_path / "adapter", device="cpu")
    assert type(model) is LlamaForCausalLM
    assert not model.training
    torch.testing.assert_close(logits(model), logits(merged), rtol=0, atol=1e-4)
    assert (logits(model) - logits(LlamaForCausalLM.from_pretrained(saved))).abs().max() > 0.1
    assert tokenizer("a")["input_ids"] == [3]  # of the model


KINDS: dict[str, Callable[[Any], Any]] = {
    "dora": lambda peft: peft.LoraConfig(target_modules=["q_proj"], use_dora=True, init_lora_weights=False),
    "head": lambda peft: lora(modules_to_save=["lm_head"]),
    "embeddings": lambda peft: peft.LoraConfig(target_modules=["embed_tokens", "v_proj"], init_lora_weights=False),
    "ia3": lambda peft: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
}


@needs_peft
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters_give_the_logits_of_the_wrapper(kind: str, saved: Path, tmp_path: Path) -> None:
    import peft

    wrapper = trained(saved, KINDS[kind](peft), tmp_path)
    assert torch.equal(logits(load(tmp_path, device="cpu")[0]), logits(wrapper))


@needs_peft
@pytest.mark.parametrize("analysis", [lens, shares, traced, attributed, interpreted])
def test_analyses_of_a_folder_are_those_of_the_merged_model(analysis: Callable[[Any], Any], tmp_path: Path) -> None:
    base = wide_model("llama")
    base.save_pretrained(tmp_path / "base")
    save_words(tmp_path / "base", eos_token="<end>")
    wrapper = trained(tmp_path / "base", lora(), tmp_path / "adapter")
    model, _ = load(tmp_path / "adapter", device="cpu")
    found = figures(analysis(model))
    np.testing.assert_allclose(found, figures(analysis(wrapper)), rtol=1e-6)  # which is taken out of its wrapper
    np.testing.assert_allclose(found, figures(analysis(wrapper.merge_and_unload().eval())), rtol=1e-3, atol=1e-5)
    other = figures(analysis(base))
    assert other.shape != found.shape or np.abs(other - found).max() > 0.01 * np.abs(found).max()


def figures(result: Any) -> np.ndarray:
    """The numbers of a result of an analysis."""
    if isinstance(result, list):
        return np.array(result[1].interpretation_prob)
    found = result.logit if hasattr(result, "logit") else result.scores
    return np.nan_to_num(np.array(found, dtype=float))


@needs_peft
@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"dtype": "bfloat16"}, {"device_map": "auto"}], ids=str)
def test_an_adapter_is_put_into_a_model_in_any_format(options: dict[str, Any], saved: Path, adapter: Path) -> None:
    expected = logits(trained(saved, lora()))
    torch.testing.assert_close(logits(load(adapter, **options)[0]), expected, rtol=0, atol=0.1)


@needs_peft
def test_the_tokenizer_of_the_adapter_comes_first(adapter: Path) -> None:
    save_words(adapter, eos_token="a")
    assert load(adapter, device="cpu")[1].eos_token == "a"


# ------------------------------------------------------------------------------------------- what runs record


@needs_peft
def test_runs_tell_adapters_apart(saved: Path, adapter: Path, tmp_path: Path) -> None:
    model, _ = load(adapter, device="cpu")
    identity = model_identity(model)
    assert identity["model"] == str(adapter)
    assert identity["weights"].startswith(f"{weights(LlamaForCausalLM.from_pretrained(saved))}, adapters sha256 ")
    assert model_identity(load(adapter, device="cpu")[0]) == identity
    same = trained(saved, lora())
    assert model_identity(same)["weights"] == identity["weights"]
    for part in model.modules():
        if isinstance(getattr(part, "scaling", None), dict):
            part.scaling["default"] *= 2
    assert weights(model) != identity["weights"]


@needs_peft
def test_workers_open_the_adapter_and_not_a_model_that_got_one_since(saved: Path, adapter: Path) -> None:
    import peft

    model, _ = load(adapter, device="cpu")
    assert opening_of(model).name == str(adapter)
    torch.testing.assert_close(logits(opening_of(model).load()[0]), logits(model))
    plain, _ = load(saved, device="cpu")
    wrapper = peft.get_peft_model(plain, lora())
    with pytest.raises(InputError, match="not opened by interpret.load, or got an adapter since"):
        opening_of(wrapper)


# ------------------------------------------------------------------------------------------- what is refused


def write(folder: Path, **settings: Any) -> Path:
    """A folder that looks like one of an adapter."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | settings))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_without_peft_the_extra_is_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    extra = "patch" if transformers.__version__ == "4.34.0" else "peft"
    with pytest.raises(ModelError, match=rf"an adapter, needs peft: pip install \"llm-interpret\[{extra}\]\""):
        load(write(tmp_path, base_model_name_or_path=str(saved)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is an adapter that does not name its model"),
        ({"base_model_name_or_path": 3}, "is an adapter that does not name its model"),
        ({"base_model_name_or_path": "x", "megatron_config": {"a": 1}}, r"needs code of its own \(megatron_config\)"),
        ({"base_model_name_or_path": "x", "revision": "v2"}, "of one revision of its model, 'v2': download that"),
        (
            {"base_model_name_or_path": "./not-there"},
            r"the model of the adapter '.*': there is no folder './not-there'",
        ),
        ({"base_model_name_or_path": "./" + "x" * 5000}, "the model of the adapter '.*': "),
    ],
)
def test_an_adapter_without_its_model_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "require", lambda module, what: None)
    with pytest.raises(ModelError, match=message):
        load(write(tmp_path, **settings))


def test_an_adapter_of_an_adapter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "require", lambda module, what: None)
    with pytest.raises(ModelError, match="is an adapter itself: merge it into its model"):
        load(write(tmp_path, base_model_name_or_path=str(tmp_path)))


def test_weights_that_are_missing_or_may_run_code_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "require", lambda module, what: None)
    monkeypatch.setattr(adapters, "READS_PICKLES", False)
    (write(tmp_path, base_model_name_or_path=str(saved)) / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        load(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"without weights in the safetensors format, .* update torch to 2\.6"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "3", "{}", '{"base_model_name_or_path": "' + "x" * 10**6 + '"}']
)
def test_settings_of_any_content_are_one_message(content: str, tmp_path: Path) -> None:
    (write(tmp_path) / "adapter_config.json").write_text(content)
    with one_message_at_most():
        load(tmp_path)


@needs_peft
def test_settings_of_another_peft_are_refused_where_they_act(adapter: Path) -> None:
    change(adapter, new_setting=None, peft_version="99.0")
    load(adapter, device="cpu")
    change(adapter, new_setting=True)
    with pytest.raises(ModelError, match=r"with settings that peft .* does not know: new_setting\. Merge it"):
        load(adapter, device="cpu")
    change(adapter, peft_type="NEW")
    with pytest.raises(ModelError, match="an adapter of the type 'NEW', which peft .* does not know"):
        load(adapter, device="cpu")


@needs_peft
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_an_adapter_outside_the_model_is_refused_by_its_kind(kind: str, saved: Path, tmp_path: Path) -> None:
    import peft

    trained(saved, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3), tmp_path)
    with pytest.raises(ModelError, match=r"PeftModelForCausalLM \(P\w+_TUNING\): .* Only adapters that are modules of"):
        load(tmp_path, device="cpu")


@needs_peft
def test_weights_have_to_be_those_of_the_adapter(saved: Path, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    trained(saved, lora(layers_to_transform=[0]), other)
    shutil.copy(other / "adapter_model.safetensors", adapter)
    with pytest.raises(ModelError, match=r"does not hold all weights of its adapter: .*layers\.1\..* is missing"):
        load(adapter, device="cpu")
    trained(saved, lora(), other)
    change(other, layers_to_transform=[0])
    with pytest.raises(ModelError, match=r"holds weights that its model has no place for, such as .*layers\.1\."):
        load(other, device="cpu")
    trained(saved, lora(r=4), other)
    change(other, r=8)
    with pytest.raises(ModelError, match="cannot open the adapter .*: .*size mismatch.* It was trained on"):
        load(other, device="cpu")


@needs_peft
def test_more_tokens_than_the_model_has_embeddings_are_refused(adapter: Path) -> None:
    _, tokenizer = load(adapter, device="cpu")
    tokenizer.add_tokens([f"new{number}" for number in range(60)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ModelError, match=r"its tokenizer has \d+ tokens, its model .* has embeddings for 48: merge"):
        load(adapter, device="cpu")


@needs_peft
def test_a_model_that_is_offloaded_takes_no_adapter(adapter: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    with pytest.raises(ModelError, match="an adapter, whose model has to stay in memory"):
        load(adapter, device_map={**places, "lm_head": "cpu", "model.rotary_emb": "cpu"})


@needs_peft
def test_a_pointer_in_place_of_the_weights_is_named(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
    )
    with pytest.raises(ModelError, match=r"Git LFS pointers in place of files \(adapter_model\.safetensors\)"):
        load(adapter, device="cpu")
