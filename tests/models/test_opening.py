"""Opening models: from folders, in every dtype and on every device, and errors that say what to do."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import utils as hub
from safetensors.torch import save_file
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from interpret.errors import ModelError
from interpret.models import files
from interpret.models.opening import load
from reference.toy_tokenizers import WORDS, save_words

IDS = torch.arange(18).reshape(2, 9)  # [B, T]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as without a network: only cached models can be opened, and there are none."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if hasattr(transformers.utils.hub, "_is_offline_mode"):  # up to transformers 4, which read the setting once
        monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", True)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


# ------------------------------------------------------------------------------------------- what is opened


def test_folder_opens_as_it_was_saved(saved: Path, original: LlamaForCausalLM) -> None:
    model, tokenizer = load(saved, device="cpu")
    assert torch.equal(logits(model), logits(original))
    assert not any(module.training for module in model.modules())
    assert tokenizer("a")["input_ids"] == [3]


def test_old_pytorch_files_open_as_well(original: LlamaForCausalLM, tmp_path: Path) -> None:
    original.config.save_pretrained(tmp_path)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    save_words(tmp_path, eos_token="<end>")
    assert torch.equal(logits(load(tmp_path, device="cpu")[0]), logits(original))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_files_open_as_well(kind: str, original: LlamaForCausalLM, tmp_path: Path) -> None:
    original.config.save_pretrained(tmp_path)
    save_words(tmp_path, eos_token="<end>")
    names = sorted(original.state_dict())
    ending = "safetensors" if kind == "safetensors" else "bin"
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places = {name: f"{stem}-{1 + number % 3:05}-of-00003.{ending}" for number, name in enumerate(names)}
    for file in set(places.values()):
        shard = {name: original.state_dict()[name].clone() for name in names if places[name] == file}
        save_file(shard, tmp_path / file, {"format": "pt"}) if kind == "safetensors" else torch.save(
            shard, tmp_path / file
        )
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (tmp_path / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(load(tmp_path, device="cpu")[0]), logits(original))
    (tmp_path / places[names[0]]).unlink()
    with pytest.raises(ModelError, match="cannot open the model"):
        load(tmp_path, device="cpu")


def test_weights_that_the_model_does_not_use_are_named(original: LlamaForCausalLM, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    load(folder, device="cpu", say=said.append)
    unused = sorted(name for name in original.state_dict() if f".layers.{config['num_hidden_layers']}." in name)
    assert said[-1].startswith(
        f"{', '.join(unused[:3])} and {len(unused) - 3} more of the files are not used by a Llama"
    )


def test_demo_is_the_demo_model_wherever_it_lies(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def demo_model_folder(say: object) -> Path:
        asked.append(say)
        return saved

    monkeypatch.setattr(files, "demo_model_folder", demo_model_folder)
    said: list[str] = []
    model, _ = load(say=said.append)
    assert asked == [said.append]
    assert said == ["opening demo"]
    assert model.config.vocab_size == 48


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_encoder_decoder_opens_with_its_encoder(kind: str, tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=48, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
    )  # fmt: skip
    wanted = BartForConditionalGeneration(config).eval()
    wanted.save_pretrained(tmp_path, safe_serialization=kind == "safetensors")
    save_words(tmp_path, eos_token="<end>")
    model, _ = load(tmp_path, device="cpu")
    assert isinstance(model, BartForConditionalGeneration)
    assert torch.equal(model(IDS, decoder_input_ids=IDS).logits, wanted(IDS, decoder_input_ids=IDS).logits)
    with pytest.raises(ModelError, match="is an encoder-decoder model, which device_map cannot spread"):
        load(tmp_path, device_map="cpu")


@pytest.mark.parametrize(
    ("special", "pad"),
    [
        ({"eos_token": "<end>", "unk_token": "<unk>"}, "<end>"),
        ({"unk_token": "<unk>"}, "<unk>"),
        ({}, "first"),
        ({"eos_token": "<end>", "pad_token": "b"}, "b"),
    ],
)
def test_every_tokenizer_can_pad_without_new_embeddings(special: dict[str, str], pad: str, folder: Path) -> None:
    save_words(folder, **special)
    model, tokenizer = load(folder)
    assert tokenizer.pad_token == pad
    assert len(tokenizer) == len(WORDS)
    assert model.get_input_embeddings().num_embeddings == 48
    assert model.generation_config.pad_token_id == tokenizer.convert_tokens_to_ids(pad)
    padded = tokenizer(["a", "a"], padding=True, return_tensors="pt")
    assert padded["attention_mask"].tolist() == [[1], [1]]


# ------------------------------------------------------------------------------------------- format and place


@pytest.mark.parametrize("given", ["float32", "float16", "bfloat16", torch.float16])
def test_dtype_is_as_asked(given: str | torch.dtype, saved: Path, original: LlamaForCausalLM) -> None:
    model, _ = load(saved, dtype=given)
    wanted = getattr(torch, given) if isinstance(given, str) else given
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    torch.testing.assert_close(logits(model), logits(original), atol=0.05, rtol=0)


def test_dtype_is_by_default_as_stored(original: LlamaForCausalLM, folder: Path) -> None:
    assert load(folder)[0].dtype == torch.float32
    LlamaForCausalLM(original.config).to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    assert load(folder)[0].dtype == torch.bfloat16


def test_device_is_by_default_the_gpu_where_there_is_one(saved: Path) -> None:
    model, _ = load(saved)
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def spread(**places: str) -> dict[str, str]:
    map_of_all = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu"}
    return {**map_of_all, "model.norm": "cpu", "lm_head": "cpu", **places}


@pytest.mark.parametrize(
    "device_map",
    ["auto", "cpu", {"": "cpu"}, spread(), spread(**{"model.layers.1": "disk"})],
    ids=["auto", "cpu", "one entry", "every module", "a layer on disk"],
)
def test_spread_model_computes_the_same(
    device_map: str | dict[str, str], saved: Path, original: LlamaForCausalLM, capfd: pytest.CaptureFixture[str]
) -> None:
    model, _ = load(saved, device_map=device_map)
    offloaded = isinstance(device_map, dict) and "disk" in device_map.values()
    assert any(parameter.is_meta for parameter in model.parameters()) == offloaded
    torch.testing.assert_close(logits(model).cpu(), logits(original))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.05), (4, 0.3)])
@pytest.mark.parametrize("place", [{}, {"device": "cpu"}, {"device_map": {"": "cpu"}}], ids=["", "device", "map"])
def test_weights_can_be_rounded(
    bits: int, bound: float, place: dict[str, object], saved: Path, original: LlamaForCausalLM
) -> None:
    said: list[str] = []
    model, _ = load(saved, **{f"load_in_{bits}bit": True}, **place, say=said.append)  # type: ignore[arg-type]
    got, wanted = logits(model).cpu(), logits(original)
    assert 0 < (got - wanted).norm() / wanted.norm() < bound
    assert said[-1] == f"rounding the weights to {bits} bits"
    assert not any(module.training for module in model.modules())

    embedded = model.get_input_embeddings()(IDS.to(model.device)).detach().requires_grad_()
    model(inputs_embeds=embedded).logits[:, -1, 7].sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float23"}, r"unknown dtype 'float23'; did you mean 'float32'\? Allowed: float32, float16"),
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"dtype": torch.int8}, r"unknown dtype 'torch.int8'; .*Allowed: float32"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_8bit and load_in_4bit exclude each other"),
        ({"device": "cuda:99"}, r"device 'cuda:99' is not available: torch finds \d+ CUDA GPUs"),
        ({"device": "gpu"}, "device 'gpu' is not a device: give 'cpu', 'cuda' or 'cuda:0'"),
        ({"device_map": {"": 99}}, r"device_map '99' is not available: torch finds \d+ CUDA GPUs"),
        ({"device_map": "autoo"}, "device_map 'autoo' is not a device"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map exclude each other"),
        ({"device_map": spread(lm_head="disk"), "load_in_8bit": True}, None),
        ({"device_map": spread(**{"model.layers.0": "disk"}), "load_in_8bit": True}, "are offloaded"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_do_not_fit(arguments: dict[str, object], message: str | None, saved: Path) -> None:
    if message is None:  # the head is not rounded and may lie on disk
        load(saved, **arguments)  # type: ignore[arg-type]
        return
    with pytest.raises(ModelError, match=message):
        load(saved, **arguments)  # type: ignore[arg-type]


def test_a_map_that_leaves_modules_out_is_refused_or_completed(saved: Path, original: LlamaForCausalLM) -> None:
    if int(transformers.__version__.split(".")[0]) >= 5:  # it puts them on a device with free memory
        assert torch.equal(logits(load(saved, device_map={"model": "cpu"})[0]), logits(original))
        return
    with pytest.raises(ModelError, match="cannot open the model '.*Check the files, and device_map"):
        load(saved, device_map={"model": "cpu"})


def test_a_missing_gpu_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelError, match="device 'cuda' is not available: torch finds 0 CUDA GPUs. Leave it out"):
        load(saved, device="cuda")


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "/nowhere", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no folder '{name}': give an existing folder, an id on the hub"):
        load(name)


@pytest.mark.parametrize("name", ["gpt2", "some/model", "no such name"])
def test_a_hub_id_out_of_reach_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"cannot open the model '{name}': .*connect to the network, or give the"):
        load(name)


def test_a_file_instead_of_a_folder_is_named(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json' is a file: give the folder that holds it"):
        load(saved / "config.json")


def spoil(name: str, text: str | None = None) -> object:
    def change(folder: Path) -> None:
        path = folder / name
        if text is None:
            path.unlink()
        else:
            path.write_text(text)

    return change


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def ask_for(**fields: int) -> object:
    def change(folder: Path) -> None:
        LlamaConfig.from_pretrained(folder, **fields).save_pretrained(folder)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_tokenizer, r"cannot open the tokenizer of .*tokenizer\.save_pretrained\(folder\)"),
        (spoil("tokenizer.json", "{"), "cannot open the tokenizer of .*(EOF while parsing|Expecting property name)"),
        (spoil("tokenizer_config.json", "{"), "cannot open the tokenizer of .*: Expecting property name"),
        (spoil("config.json"), r"cannot open the model .*model.*\. A model's folder holds config\.json"),
        (spoil("config.json", "{"), "cannot open the model .*not a valid JSON file"),
        (spoil("config.json", '{"model_type": "lama"}'), "cannot open the model .*model type [`']lama[`']"),
        (spoil("config.json", '{"model_type": "vit"}'), "cannot open the model .*Unrecognized configuration"),
        (spoil("model.safetensors"), "cannot open the model .*no file named"),
        (cut_weights, "cannot open the model .*not fully covered. Check the files"),
        (ask_for(num_hidden_layers=3),
         r"not hold all weights of a LlamaForCausalLM: model\.layers\.2\..*\.weight, .* and 6 more missing"),
        (ask_for(vocab_size=49), r"shape.*\[48, 64\].*\[49, 64\]"),
    ],
    ids=["no tokenizer", "tokenizer.json", "tokenizer_config", "no config", "config not JSON", "unknown type",
         "not a language model", "no weights", "cut weights", "missing layer", "other shape"],
)  # fmt: skip
def test_a_damaged_folder_is_explained(change, message: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(ModelError, match=message):
        load(folder)


# ------------------------------------------------------------------------------------------- noise and traces


def logging_state() -> tuple[object, ...]:
    root = logging.getLogger()
    bars = (transformers_logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled())
    return (tuple(root.handlers), root.level, transformers_logging.get_verbosity(), *bars)


@pytest.fixture(params=[True, False], ids=["bars", "no bars"])
def _bars(request: pytest.FixtureRequest) -> Iterator[None]:
    """Progress bars as a user may have set them; the defaults are restored afterwards."""
    if not request.param:
        transformers_logging.disable_progress_bar()
        hub.disable_progress_bars()
    yield
    transformers_logging.enable_progress_bar()
    hub.enable_progress_bars()


@pytest.mark.usefixtures("_bars")
def test_loading_leaves_logging_as_it_was(saved: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_logging._get_library_root_logger(), "level", logging.INFO)
    before = logging_state()
    load(saved, device_map=spread(**{"model.layers.1": "disk"}))
    cut_weights(folder)
    with pytest.raises(ModelError):
        load(folder)
    assert logging_state() == before


def test_nothing_is_printed_in_a_process_of_its_own(saved: Path) -> None:
    script = (
        "import logging\n"
        "from interpret.models.opening import load\n"
        f"load({str(saved)!r}, load_in_8bit=True)\n"
        f"load({str(saved)!r}, device_map={spread(**{'model.layers.1': 'disk'})})\n"
        "assert not logging.root.handlers\n"
    )
    # When imported, transformers 4.34.0 uses a name that torch has renamed.
    done = subprocess.run([sys.executable, "-W", "ignore::FutureWarning", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
