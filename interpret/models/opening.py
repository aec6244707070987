"""Open a model and its tokenizer.

The first step of every run. A folder, an id on the Hugging Face hub or the word ``demo`` gives a model in evaluation
mode, on its device and in its dtype, and a tokenizer that can pad. Analyses never open models themselves.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import utils as hub  # type: ignore[import-untyped]
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from interpret.anatomy import (
    check_release,
    dequantised,
    describe_if_unknown,
    gguf_arguments,
    loading_arguments,
    reads_gguf,
)
from interpret.anatomy.changes import Changes
from interpret.errors import InputError, ModelError, RunError, brief, named, one_line, unknown
from interpret.models.demo import SMOLLM2, demo_model_folder
from interpret.models.extras import is_installed, missing, require
from interpret.models.gguf import check_room, converted_folder
from interpret.models.quantize import quantize_, unrounded_
from interpret.models.safety import (
    check_folder,
    check_tokenizer,
    is_pointer,
    loading_safely,
    own_code,
    refusal_of_code,
    refusal_of_pickle,
    tensors_only,
)
from interpret.models.unfilled import Unfilled
from interpret.storage import provenance
from interpret.storage.cache import cache_folder, remembered_sha256, weights_sha256

Say = Callable[[str], None]
DeviceMap = str | Mapping[str, int | str | torch.device]
Gguf = dict[str, str]
"""``gguf_file``: the file's name, as an argument of ``from_pretrained``; empty for other sources."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Supported dtypes. In float64, transformers 4.34.0 cannot create the attention mask of a Llama model."""
_MAP_WORDS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate knows by name."""
_OPENING = "_interpret_opening"
"""Attribute of opened models that holds their ``Opening``; transformers stores a changed name."""
_HARMLESS_WARNINGS = (".*TypedStorage is deprecated.*", ".*_register_pytree_node.*", "Detected pickle protocol")
"""transformers 4.34.0 uses names that torch has since renamed, and weights of an unusual pickle protocol are refused
with an error of their own."""


@dataclass(frozen=True)
class Opening:
    """How a model is opened, so that other processes can open it too: the arguments of ``load``."""

    name: str = "demo"
    """A folder, an id on the Hugging Face hub, a GGUF file, or ``demo``."""
    dtype: str | None = None
    device: str | None = None
    device_map: DeviceMap | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False

    def load(self, say: Say | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Open the model and its tokenizer; errors are those of ``load``."""
        return load(
            self.name,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            load_in_8bit=self.load_in_8bit,
            load_in_4bit=self.load_in_4bit,
            say=say,
        )


def opening_of(model: "PreTrainedModel | Opening") -> Opening:
    """Return how a model was opened.

    Raises:
        InputError: if it was not opened by ``load``, so that other processes cannot open it.
    """
    found = model if isinstance(model, Opening) else vars(model).get(_OPENING)
    if found is None:
        raise InputError("workers cannot open this model: it was not opened by interpret.load; leave workers out")
    return found


def load(
    name_or_path: str | os.PathLike[str] = "demo",
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    say: Say | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a model and its tokenizer.

    Args:
        name_or_path: a folder as written by ``save_pretrained``, an id on the Hugging Face hub, or ``"demo"``:
            SmolLM2-135M-Instruct, which needs no hub (a folder of that name is ``"./demo"``). With a current
            transformers also a ``.gguf`` file, whose weights are dequantised to float32, once: the result is kept in
            the cache.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or the torch dtype; by default as stored.
        device: the device of the model, such as ``"cpu"`` or ``"cuda:1"``; by default the GPU if there is one.
        device_map: instead of ``device``, for models larger than one GPU: ``"auto"`` or a mapping from module
            names to devices, ``"cpu"`` or ``"disk"``, as in accelerate. Offloaded weights are loaded whenever their
            layer runs.
        load_in_8bit: quantise the weights to 8 bits; see ``quantize_`` for the cost.
        load_in_4bit: quantise the weights to 4 bits.
        say: is called with one line before each slow step; silent by default.

    Returns:
        The model in evaluation mode, and the tokenizer. A tokenizer without a padding token pads with its
        end-of-text token (else its unknown token, else token 0); the embeddings keep their size.

    No code of a model's files is run: a model that consists of Python files is refused, and of weights in ``.bin`` or
    ``.pt`` files only tensors are read, which requires torch 2.6. Weights in the safetensors format are preferred.

    Raises:
        ModelError: if the model or its tokenizer cannot be found or read, needs code of its own, or the arguments
            contradict each other or need a device that this machine does not have, or an extra that is not installed.
        UnsupportedModelError: if the installed transformers is not supported.

    Example:
        >>> model, tokenizer = load("demo", dtype="float32", device="cpu")  # doctest: +SKIP
    """
    check_release()
    bits = _bits(load_in_8bit, load_in_4bit)
    torch_dtype = _dtype(dtype)
    place = _place(device, device_map)
    source, gguf = _source(os.fspath(name_or_path), say)
    if say:
        say(f"opening {name_or_path}")
    file = Path(source, gguf["gguf_file"]) if gguf else None
    with _quiet(), tensors_only():
        if file and torch_dtype == "auto":
            torch_dtype = torch.float32  # transformers 5 takes the dtype of the file's norms, so do not leave it to it
        if file and (kept := converted_folder(file, partial(_convert, say=say), say)):
            source, gguf = str(kept), {}
        config = _open_config(source, gguf)
        tokenizer = _open_tokenizer(source, gguf, config)
        model = _open_model(source, gguf, config, torch_dtype, device_map, say)
        if file:
            model.config._name_or_path = str(file)
        vars(model)[_OPENING] = Opening(
            os.fspath(name_or_path),
            None if dtype is None else str(dtype).removeprefix("torch."),
            None if device is None else str(device),
            device_map,
            load_in_8bit,
            load_in_4bit,
        )
        unrounded_(model)
        if say and (modules := own_code(config.to_dict())):
            say(f"opened with the code of transformers; that of the model ({modules}) is not run")
        if bits:
            if say:
                say(f"rounding the weights to {bits} bits")
            quantize_(model, bits, device=place)
        if place is not None:
            model.to(place)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    describe_if_unknown(model.eval())
    return model, tokenizer


# ------------------------------------------------------------------------------ what runs record about a model


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Return what a run records about a model and compares when it is resumed.

    Args:
        model: as ``load`` opened it, or opened by transformers.

    Returns:
        ``model``, the name with which it was opened, or ``demo``; ``weights``, see the function ``weights``; ``dtype``;
        and whether its layers are quantised, ``load_in_8bit`` and ``load_in_4bit``.

    Raises:
        RunError: if its weights cannot be read.
    """
    opening = vars(model).get(_OPENING)
    name = opening.name if opening else str(model.config._name_or_path)
    layers = {type(module).__name__ for module in model.modules()}
    eight_bit = {"Linear8bitLt", "EightBitLinear"}
    return {
        "model": "demo" if name == str(cache_folder() / SMOLLM2.folder) else name,
        "weights": weights(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "load_in_8bit": bool(layers & eight_bit),
        "load_in_4bit": "Linear4bit" in layers,
    }


def model_circumstances(model: PreTrainedModel) -> dict[str, Any]:
    """Return what a run records about a model without comparing it: ``versions`` of libraries, and its ``device``."""
    return {"versions": provenance.versions(), "device": str(model.device)}


def weights(model: PreTrainedModel) -> str:
    """Return an identifier of a model's weights: a hash of its files or of its tensors, or its commit on the hub.

    The files are those from which it was opened; later changes of the weights in memory do not show. Tensors are hashed
    if the model was not opened from a file, a folder or the hub.

    Raises:
        RunError: if a file cannot be read, or its folder has no weight files.
    """
    name = str(model.config._name_or_path)
    place = Path(name)
    if place.is_file():
        return f"sha256 {remembered_sha256(place)}"
    if name and place.is_dir():
        return f"sha256 {weights_sha256(place)}"
    if name:
        return f"commit {model.config._commit_hash}"
    return f"tensors {_tensors_sha256(model)}"


def _tensors_sha256(model: PreTrainedModel) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# ------------------------------------------------------------------------------------ reading the arguments


def _bits(load_in_8bit: bool, load_in_4bit: bool) -> Literal[4, 8] | None:
    if load_in_8bit and load_in_4bit:
        raise ModelError("load_in_8bit and load_in_4bit exclude each other: choose one")
    if load_in_8bit:
        return 8
    return 4 if load_in_4bit else None


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | Literal["auto"]:
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ModelError(unknown("dtype", str(dtype), DTYPES))


def _place(device: str | torch.device | None, device_map: DeviceMap | None) -> torch.device | None:
    """Return the device of the whole model; None if a device map spreads it over several."""
    if device_map is None:
        if device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return _usable("device", device)
    require("accelerate", "device_map")
    if device is not None:
        raise ModelError("device and device_map exclude each other: give device for one, device_map for several")
    targets = [device_map] if isinstance(device_map, str) else device_map.values()
    for target in targets:
        if target != "disk" and target not in _MAP_WORDS:
            _usable("device_map", target)
    return None


def _usable(argument: str, device: int | str | torch.device) -> torch.device:
    """Check that this machine has a device; an integer is the index of a GPU."""
    try:
        wanted = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError as error:  # not a device at all
        raise ModelError(f"{argument} {device!r} is not a device: give 'cpu', 'cuda' or 'cuda:0'") from error
    gpus = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= gpus:
        raise ModelError(
            f"{argument} {str(device)!r} is not available: torch finds {gpus} CUDA GPUs. Leave it out, or give 'cpu'"
        )
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError(
            f"{argument} {str(device)!r} is not available: torch finds no Apple GPU. Leave it out, or give 'cpu'"
        )
    return wanted


def _source(name: str, say: Say | None) -> tuple[str, Gguf]:
    """Return the source for ``from_pretrained``, an existing folder or an id on the hub, and the GGUF file in it."""
    if name == "demo":
        return str(demo_model_folder(say)), {}
    folder = Path(name).expanduser()
    try:
        folder.exists()
    except OSError as error:  # too long for a path, or in a folder that cannot be read
        raise ModelError(f"{brief(name)} cannot be opened: {error.strerror}") from None
    if folder.is_dir():
        check_folder(folder)
        return str(folder), {}
    if folder.is_file() and is_pointer(folder):
        raise ModelError(f"{named(name)!r} is a Git LFS pointer in place of the file: run 'git lfs pull' in its folder")
    if folder.is_file() and folder.suffix == ".gguf":
        if not reads_gguf():
            raise ModelError(
                f"{name!r}: transformers {transformers.__version__} cannot read GGUF files; a current version can"
            )
        return str(folder.parent), {"gguf_file": folder.name}
    if folder.exists():
        raise ModelError(f"{name!r} is a file: give the folder that holds it, with its config.json and tokenizer")
    # A backslash or a colon: a path on Windows.
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or any(sign in name for sign in "\\:"):
        raise ModelError(f"there is no folder {name!r}: give an existing folder, an id on the hub, or 'demo'")
    return name, {}


# ------------------------------------------------------------------------------------------- opening the files


def _convert(file: Path, folder: Path, say: Say | None) -> None:
    """Write the model of a GGUF file into a folder, as ``save_pretrained`` does, with its weights in float32.

    Raises:
        ModelError: if accelerate is not installed.
        OSError: if the weights do not fit on the disk.
        RunError: if its tokenizer would not be the same when it is opened from the folder.
    """
    require("accelerate", "converting a GGUF file")
    source, gguf = str(file.parent), {"gguf_file": file.name}
    config = _open_config(source, gguf)
    check_room(file, folder)
    tokenizer = _open_tokenizer(source, gguf, config)
    tokenizer.save_pretrained(folder)
    if _content(_open_tokenizer(str(folder), {}, config)) != _content(tokenizer):
        raise RunError("its tokenizer is another one after it was saved")
    _open_model(source, gguf, config, torch.float32, None, say).save_pretrained(folder)


def _content(tokenizer: PreTrainedTokenizerBase) -> tuple[str, dict[str, Any], Any]:
    """Return what decides how a tokenizer of the library tokenizers reads texts."""
    return tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map, tokenizer.chat_template


def _open_config(source: str, gguf: Gguf) -> PretrainedConfig:
    if Path(source).is_dir():
        advice = "A model's folder holds config.json, weights and tokenizer, as save_pretrained writes them"
    else:
        advice = (
            "There is no folder of this name either. Check the name, connect to the network, "
            "or give the folder of a model, or 'demo'"
        )
    with _explained(f"cannot open the model {source!r}", advice):
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


def _open_tokenizer(source: str, gguf: Gguf, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    advice = "Save it beside the model: tokenizer.save_pretrained(folder)"
    with _explained(f"cannot open the tokenizer of {source!r}", advice):
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


def _lacks_sentencepiece(source: str, error: Exception) -> bool:
    """Return whether a tokenizer was not opened because a package of the extra ``sentencepiece`` is missing.

    Without it, transformers 5 takes the file for one of tiktoken, and says so.
    """
    if is_installed("sentencepiece") and is_installed("google.protobuf"):
        return False
    return "sentencepiece" in str(error).lower() or any(Path(source).glob("*.model"))


def _open_model(
    source: str,
    gguf: Gguf,
    config: PretrainedConfig,
    dtype: torch.dtype | Literal["auto"],
    device_map: DeviceMap | None,
    say: Say | None,
) -> PreTrainedModel:
    if config.is_encoder_decoder:
        # AutoModelForCausalLM would open it without its encoder. With a device map, transformers 4.34.0 loses the
        # embeddings that encoder and decoder share.
        if device_map is not None:
            raise ModelError(f"{source!r} is an encoder-decoder model, which device_map cannot spread: give device")
        auto = AutoModelForSeq2SeqLM
    else:
        auto = AutoModelForCausalLM
        # With any device map, the weights are not initialised at random first, and loading takes a third of the time.
        # (low_cpu_mem_usage alone has the same effect, but then missing weights are not reported.)
        device_map = device_map or ({"": "cpu"} if is_installed("accelerate") else None)
    of_file = {**gguf, **gguf_arguments()} if gguf else {}
    with _explained(f"cannot open the model {source!r}", "Check the files, and device_map if it is given"), Unfilled():
        model, report = auto.from_pretrained(
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


@contextmanager
def _explained(problem: str, advice: str) -> Iterator[None]:
    """Convert errors of the libraries to a ModelError with their first sentence, and with their type if it is unusual.

    Files of a model may contain anything, so the libraries may raise anything (a configuration without heads gives a
    ``ZeroDivisionError``). The original error stays the cause.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if refusal := refusal_of_pickle(error):
            raise ModelError(f"{problem}: {refusal}") from error
        # tokenizers raises a plain Exception for a damaged tokenizer.json
        usual = type(error) is Exception or isinstance(error, _OPENING_ERRORS)
        text = _first_sentence(error) if usual else f"{type(error).__name__}: {_first_sentence(error)}"
        raise ModelError(f"{problem}: {text}. {advice}") from error


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error, without advice, which is about the hub even if a folder was given."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    sentence = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return one_line(sentence.split(". ")[0].rstrip("."))


_OPENING_ERRORS = (OSError, ValueError, LookupError, ImportError, RuntimeError, SafetensorError)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output of transformers and accelerate while opening a model; download progress bars stay."""
    with Changes() as change, change:
        change.set(warnings, "filters", [*warnings.filters])
        for message in _HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message)
        change.undo(partial(transformers_logging.set_verbosity, transformers_logging.get_verbosity()))
        transformers_logging.set_verbosity_error()
        hub_bars = not hub.are_progress_bars_disabled()
        change.undo(partial(_show_bars, transformers_logging.is_progress_bar_enabled(), hub_bars))
        _show_bars(False, hub_bars)
        # accelerate logs offloading to the root logger; without a handler, that would configure logging for the
        # process.
        silent = logging.NullHandler()
        change.undo(partial(logging.root.removeHandler, silent))
        logging.root.addHandler(silent)
        yield


def _show_bars(loading: bool, downloads: bool) -> None:
    """Turn the progress bars of transformers and of the hub on or off; the former also set the latter."""
    transformers_logging.enable_progress_bar() if loading else transformers_logging.disable_progress_bar()
    hub.enable_progress_bars() if downloads else hub.disable_progress_bars()
