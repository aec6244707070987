"""Open a model and its tokenizer.

The first step of every run. A folder, an id on the Hugging Face hub or the word ``demo`` gives a model in evaluation
mode, on its device and in its dtype, and a tokenizer that can pad. Analyses never open models themselves.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import check_release, describe_if_unknown, unwrapping
from interpret.errors import InputError
from interpret.models.adapters import adapters_sha256, check_tokens, put_adapter_
from interpret.models.arguments import DeviceMap, bits_of, dtype_of, place_of
from interpret.models.files import (
    Say,
    convert,
    open_config,
    open_converted_tokenizer,
    open_model,
    open_tokenizer,
    source_of,
)
from interpret.models.gguf import converted_folder
from interpret.models.quantize import quantize_, unrounded_
from interpret.models.quiet import quiet
from interpret.models.safety import own_code, tensors_only

_OPENING = "_interpret_opening"
"""Attribute of opened models that holds a hash of their adapters and their ``Opening``; transformers stores a changed
name."""


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


def opened_as(model: PreTrainedModel) -> Opening | None:
    """Return how ``load`` opened a model; None if it was opened in another way, or its adapters changed since."""
    adapters, opening = vars(model).get(_OPENING, (None, None))
    return opening if adapters == adapters_sha256(model) else None


@unwrapping
def opening_of(model: "PreTrainedModel | Opening") -> Opening:
    """Return how a model was opened.

    Raises:
        InputError: if it was not opened by ``load``, so that other processes cannot open it.
    """
    found = model if isinstance(model, Opening) else opened_as(model)
    if found is None:
        raise InputError(
            "workers cannot open this model: it was not opened by interpret.load, or got an "
            "adapter since; leave workers out"
        )
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
            the cache. For the folder of an adapter, as written by ``PeftModel.save_pretrained``, the model that it was
            trained on, with the adapter (extra ``peft``).
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
    bits = bits_of(load_in_8bit, load_in_4bit)
    torch_dtype = dtype_of(dtype)
    place = place_of(device, device_map)
    source = source_of(os.fspath(name_or_path), say)
    if say:
        say(f"opening {name_or_path}")
    name, gguf, adapter = source.name, source.gguf, source.adapter
    file = Path(name, gguf["gguf_file"]) if gguf else None
    with quiet(), tensors_only():
        if file and torch_dtype == "auto":
            torch_dtype = torch.float32  # transformers 5 takes the dtype of the file's norms, so do not leave it to it
        kept = converted_folder(file, partial(convert, say=say), say) if file else None
        if kept:
            name, gguf = str(kept), {}
        config = open_config(name, gguf)
        of_tokenizer = str(adapter.folder) if adapter and adapter.has_tokenizer else name
        tokenizer = open_converted_tokenizer(kept, config) if kept else open_tokenizer(of_tokenizer, gguf, config)
        model = open_model(name, gguf, config, torch_dtype, device_map, say)
        if file:
            model.config._name_or_path = str(file)
        unrounded_(model)
        if say and (modules := own_code(config.to_dict())):
            say(f"opened with the code of transformers; that of the model ({modules}) is not run")
        if bits:
            if say:
                say(f"rounding the weights to {bits} bits")
            quantize_(model, bits, device=place)
        if adapter:
            check_tokens(adapter, model, tokenizer)
            put_adapter_(model, adapter)
        if place is not None:
            model.to(place)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    describe_if_unknown(model.eval())
    vars(model)[_OPENING] = (
        adapters_sha256(model),
        Opening(
            os.fspath(name_or_path),
            None if dtype is None else str(dtype).removeprefix("torch."),
            None if device is None else str(device),
            device_map,
            load_in_8bit,
            load_in_4bit,
        ),
    )
    return model, tokenizer
