"""Open the configuration, the tokenizer and the weights of a model from its files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from interpret.anatomy import auto_class, dequantised, gguf_arguments, loading_arguments, reads_gguf
from interpret.errors import ModelError, RunError, brief, named
from interpret.models.adapters import Adapter, adapter_in
from interpret.models.arguments import DeviceMap
from interpret.models.demo import demo_model_folder
from interpret.models.extras import is_installed, missing, require
from interpret.models.gguf import check_room
from interpret.models.quiet import explained
from interpret.models.safety import (
    ADAPTER,
    check_folder,
    check_pointers,
    check_tokenizer,
    is_pointer,
    loading_safely,
    own_code,
    refusal_of_code,
)
from interpret.models.unfilled import Unfilled

Say = Callable[[str], None]
Gguf = dict[str, str]
"""``gguf_file``: the file's name, as an argument of ``from_pretrained``; empty for other sources."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model is opened from."""

    name: str
    """An existing folder, or an id on the hub."""
    gguf: Gguf = field(default_factory=dict)
    """The file in the folder, if it is a GGUF file."""
    adapter: Adapter | None = None
    """The adapter that is put into the model."""


def source_of(name: str, say: Say | None) -> ModelFiles:
    """Return where a model is opened from.

    Args:
        name: as for ``load``.
        say: is called with one line before the demo model is made.

    Raises:
        ModelError: if there is no such file or folder, or it cannot be opened.
    """
    if name == "demo":
        return ModelFiles(str(demo_model_folder(say)))
    folder = Path(name).expanduser()
    try:
        folder.exists()
    except OSError as error:  # too long for a path, or in a folder that cannot be read
        raise ModelError(f"{brief(name)} cannot be opened: {error.strerror}") from None
    if folder.is_dir():
        check_pointers(folder)
        if adapter := adapter_in(folder):
            return _base_of(adapter, say)
        check_folder(folder)
        return ModelFiles(str(folder))
    if folder.is_file() and is_pointer(folder):
        raise ModelError(
            f"{named(name)!r} is a Git LFS pointer, a few lines of text: the file itself was not downloaded. Run "
            "'git lfs pull' in its folder"
        )
    if folder.is_file() and folder.suffix == ".gguf":
        if not reads_gguf():
            raise ModelError(
                f"{name!r}: transformers {transformers.__version__} cannot read GGUF files; a current version can"
            )
        return ModelFiles(str(folder.parent), {"gguf_file": folder.name})
    if folder.exists():
        raise ModelError(f"{name!r} is a file: give the folder that holds it, with its config.json and tokenizer")
    # A backslash or a colon: a path on Windows.
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or any(sign in name for sign in "\\:"):
        raise ModelError(f"there is no folder {name!r}: give an existing folder, an id on the hub, or 'demo'")
    return ModelFiles(name)


def _base_of(adapter: Adapter, say: Say | None) -> ModelFiles:
    """Return the source of the model that an adapter was trained on, with the adapter.

    Raises:
        ModelError: if it cannot be opened, or is an adapter or a GGUF file itself.
    """
    what = f"the model of the adapter {named(adapter.folder)!r}"
    try:
        if (Path(adapter.base).expanduser() / ADAPTER).is_file():
            raise ModelError(f"{brief(adapter.base)} is an adapter itself: merge it into its model")
        source = source_of(adapter.base, say)
    except (ModelError, OSError) as error:
        raise ModelError(f"{what}: {error}") from None
    if source.gguf:
        raise ModelError(f"{what}: {brief(adapter.base)} is a GGUF file, which takes no adapters")
    return replace(source, adapter=adapter)


def convert(file: Path, folder: Path, say: Say | None) -> None:
    """Write the model of a GGUF file into a folder, as ``save_pretrained`` does, with its weights in float32.

    Raises:
        ModelError: if accelerate is not installed.
        OSError: if the weights do not fit on the disk.
        RunError: if its tokenizer would not be the same when it is opened from the folder.
    """
    require("accelerate", "converting a GGUF file")
    source, gguf = str(file.parent), {"gguf_file": file.name}
    config = open_config(source, gguf)
    check_room(file, folder)
    tokenizer = open_tokenizer(source, gguf, config)
    tokenizer.save_pretrained(folder)
    if _content(open_converted_tokenizer(folder, config)) != _content(tokenizer):
        raise RunError("its tokenizer is another one after it was saved")
    open_model(source, gguf, config, torch.float32, None, say).save_pretrained(folder)


def _content(tokenizer: PreTrainedTokenizerBase) -> tuple[str, dict[str, Any], Any]:
    """Return what decides how a tokenizer of the library tokenizers reads texts."""
    return tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map, tokenizer.chat_template


def open_config(source: str, gguf: Gguf) -> PretrainedConfig:
    """Return the configuration of a model.

    Raises:
        ModelError: if it cannot be read, or the model needs code of its own.
    """
    if Path(source).is_dir():
        advice = "A model's folder holds config.json, weights and tokenizer, as save_pretrained writes them"
    else:
        advice = (
            "There is no folder of this name either. Check the name, connect to the network, "
            "or give the folder of a model, or 'demo'; adapters are opened from folders only"
        )
    with explained(f"cannot open the model {source!r}", advice):
        try:
            return AutoConfig.from_pretrained(source, trust_remote_code=False, **gguf)
        except (KeyError, ValueError) as error:
            _refuse_code(source, {} if gguf else PretrainedConfig.get_config_dict(source)[0])
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"transformers {transformers.__version__} does not know the model type {error}") from error


def _refuse_code(source: str, settings: Mapping[str, Any]) -> None:
    """Raise an error if opening failed because the files name Python code that transformers would have to run."""
    if modules := own_code(settings):
        raise ModelError(refusal_of_code(source, modules)) from None


def open_tokenizer(source: str, gguf: Gguf, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with a padding token.

    Raises:
        ModelError: if it cannot be read, needs code of its own, or an extra that is not installed.
    """
    advice = "Save it beside the model: tokenizer.save_pretrained(folder)"
    with explained(f"cannot open the tokenizer of {source!r}", advice):
        settings = {} if gguf else get_tokenizer_config(source)
        check_tokenizer(source, settings, config)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **gguf)
        except Exception as error:
            if isinstance(error, ValueError):
                _refuse_code(source, settings)
            if _lacks_sentencepiece(source, error):
                raise ModelError(missing("sentencepiece", f"the tokenizer of {source!r}")) from error
            raise
    if tokenizer.pad_token_id is None:
        # An existing token: a new one would need a new row of the embeddings.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def open_converted_tokenizer(folder: Path, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer that ``convert`` saved in a folder.

    Some classes of transformers, such as that of Qwen 2, replace parts of the saved tokenizer when they open it.

    Raises:
        ModelError: as ``open_tokenizer`` raises.
    """
    tokenizer = open_tokenizer(str(folder), {}, config)
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_file(str(folder / "tokenizer.json"))
    return tokenizer


def _lacks_sentencepiece(source: str, error: Exception) -> bool:
    """Return whether a tokenizer was not opened because a package of the extra ``sentencepiece`` is missing.

    Without it, transformers 5 takes the file for one of tiktoken, and says so.
    """
    if is_installed("sentencepiece") and is_installed("google.protobuf"):
        return False
    return "sentencepiece" in str(error).lower() or any(Path(source).glob("*.model"))


def open_model(
    source: str,
    gguf: Gguf,
    config: PretrainedConfig,
    dtype: torch.dtype | Literal["auto"],
    device_map: DeviceMap | None,
    say: Say | None,
) -> PreTrainedModel:
    """Return a model with the weights of its files.

    Args:
        source: a folder or an id on the hub.
        gguf: the GGUF file in the folder, if the weights are in one.
        config: the model's configuration.
        dtype: the dtype of its weights.
        device_map: as for ``load``.
        say: is called with one line if the files hold weights that the model does not use.

    Raises:
        ModelError: if the files cannot be read, or do not hold all weights of the model.
    """
    if config.is_encoder_decoder:
        # With a device map, transformers 4.34.0 loses the embeddings that encoder and decoder share.
        if device_map is not None:
            raise ModelError(f"{source!r} is an encoder-decoder model, which device_map cannot spread: give device")
    else:
        # With any device map, the weights are not initialised at random first, and loading takes a third of the time.
        # (low_cpu_mem_usage alone has the same effect, but then missing weights are not reported.)
        device_map = device_map or ({"": "cpu"} if is_installed("accelerate") else None)
    of_file = {**gguf, **gguf_arguments()} if gguf else {}
    with explained(f"cannot open the model {source!r}", "Check the files, and device_map if it is given"), Unfilled():
        model, report = auto_class(config).from_pretrained(
            source,
            config=config,
            device_map=device_map,
            output_loading_info=True,
            **loading_safely(),
            **loading_arguments(dtype),
            **of_file,
        )
    model = dequantised(model) if gguf else model
    _check_complete(model, source, report)
    if say and (unused := sorted(report["unexpected_keys"])):
        say(f"{_some(unused)} of the files are not used by a {type(model).__name__} with this config.json")
    return model


def _check_complete(model: PreTrainedModel, source: str, report: Mapping[str, Any]) -> None:
    """Raise an error if transformers initialised missing weights at random, which it only warns about."""
    if report["mismatched_keys"]:
        name, stored, wanted = sorted(report["mismatched_keys"])[0]
        raise ModelError(
            f"{source!r}: the weights do not have the shapes of config.json: {name} is {list(stored)}, "
            f"not {list(wanted)}. Check the files"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{source!r} does not hold all weights of a {type(model).__name__}: {_some(missing)} missing")


def _some(names: Sequence[str]) -> str:
    """Return the first names of weights, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
