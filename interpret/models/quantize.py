"""Quantise weights to 8 or 4 bits, on the CPU or on the GPU.

Replaces the linear layers of an opened model by those of bitsandbytes: 8 bits with the weights of LLM.int8() (Dettmers
et al. 2022, arXiv:2208.07339), 4 bits as NF4 in blocks of 64 (Dettmers et al. 2023, arXiv:2305.14314). Only weights are
rounded, not hidden states, so a text gives the same numbers in every batch (``eight_bit``). Embeddings, norms and the
unembedding are not changed; hooks, edits of hidden states and gradients to them work as before.
"""

import importlib
import logging
from functools import partial
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interpret.anatomy.changes import Changes
from interpret.errors import ModelError
from interpret.models.extras import missing

Model = TypeVar("Model", bound=PreTrainedModel)

BLOCK = 64
"""4 bits: number of neighbouring weights that share a scale."""


def quantize_(model: Model, bits: Literal[4, 8], *, device: torch.device | str | None = None) -> Model:
    """Replace every linear layer except the unembedding by one with 8-bit or 4-bit weights, in place.

    The cost, measured on SmolLM2-135M-Instruct against float32, on the CPU, over three texts: relative error
    ``|q - f| / |f|`` of all logits, cosine similarity of the gradients of the largest logit at the last token with
    respect to the input embeddings, and memory of the parameters (538 MB in float32; 113 MB of it are embeddings,
    which are not quantised)

    ==== =========== ============= ======
    bits logit error gradient      memory
    ==== =========== ============= ======
    8    4% to 6%    0.99 to 1.00  220 MB
    4    18% to 39%  -0.10 to 0.67 166 MB
    ==== =========== ============= ======

    The loss is largest for small models like this one. Large models, for which 4 bits are meant, lose far less. Verify
    findings in full precision.

    Args:
        model: an opened model whose weights are in memory (not offloaded).
        bits: 8 or 4.
        device: the device of the quantised layers. They move one by one, so that the full-precision model is never on
            that device. By default each layer stays on its device. The rest of the model is not moved.

    Returns:
        The same model.

    Raises:
        ModelError: if bitsandbytes cannot be imported, ``bits`` is neither 4 nor 8, weights are offloaded, a layer
            has an input width that 4 bits do not support, or there is no linear layer to quantise. The model is then
            unchanged.

    Example:
        >>> quantize_(model, 8)  # doctest: +SKIP
    """
    if bits not in (4, 8):
        raise ModelError(f"weights can be quantised to 8 or 4 bits, not to {bits}")
    bitsandbytes = _bitsandbytes()
    places = _linear_places(model, bits)
    for occurrences in places:
        parent, name = occurrences[0]
        linear = getattr(parent, name)
        new = _eight_bit(bitsandbytes, linear, device) if bits == 8 else _four_bit(bitsandbytes, linear, device)
        for parent, name in occurrences:
            setattr(parent, name, new)  # the old layer's memory is free from here on
    return model


def unrounded_(model: nn.Module) -> None:
    """Make the 8-bit layers of a model that was saved with them stop rounding their inputs, in place."""
    module: Any
    for module in model.modules():
        # By its name, because bitsandbytes is optional. For training, its layers keep 16-bit weights.
        if type(module).__name__ == "Linear8bitLt" and not module.state.has_fp16_weights:
            module.__class__ = importlib.import_module("interpret.models.eight_bit").EightBitLinear


def _linear_places(model: PreTrainedModel, bits: int) -> list[list[tuple[nn.Module, str]]]:
    """Find the linear layers: for each, all the (parent, attribute) pairs that hold it."""
    head = model.get_output_embeddings()
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            # Exact types: a subclass (such as bitsandbytes' own) computes something else.
            if child is head or type(child) not in (nn.Linear, Conv1D):
                continue
            _check(child, f"{path}.{name}", bits)
            places.setdefault(id(child), []).append((parent, name))
    if not places:
        raise ModelError(
            f"there is no linear layer to quantise in this {type(model).__name__}; is it already quantised?"
        )
    return list(places.values())


def _check(linear: nn.Linear | Conv1D, name: str, bits: int) -> None:
    """Raise an error if a layer cannot be quantised; called before any layer is replaced."""
    if linear.weight.is_meta:
        raise ModelError(
            f"the weights of {name} are offloaded; quantised weights have to stay in memory: "
            "leave device_map out, or give one that offloads nothing"
        )
    # On CPUs with AVX512, bitsandbytes 0.50 misreads the scales of blocks that reach from one row into the next:
    # the error of such weights is 30% instead of 9%, without a warning.
    width = _weight(linear).shape[1]
    if bits == 4 and width % BLOCK:
        raise ModelError(
            f"4 bits need layers whose input width is a multiple of {BLOCK}, but {name} has input width {width}: "
            "open this model in 8 bits"
        )


def _eight_bit(bitsandbytes: ModuleType, linear: nn.Linear | Conv1D, device: torch.device | str | None) -> nn.Module:
    weight = _weight(linear)
    # Created on "meta", so that the weights, which are replaced at once, take no memory and no random numbers.
    layer = importlib.import_module("interpret.models.eight_bit").EightBitLinear  # it imports bitsandbytes
    new: nn.Module = layer(
        weight.shape[1], weight.shape[0], bias=linear.bias is not None, has_fp16_weights=False, device="meta"
    )
    # bitsandbytes quantises a weight when it is moved from the CPU to any device, even to the CPU.
    parameter = bitsandbytes.nn.Int8Params(weight.cpu().contiguous(), requires_grad=False, has_fp16_weights=False)
    new.weight = parameter.to(device or weight.device)
    return _finish(new, linear, device)


def _four_bit(bitsandbytes: ModuleType, linear: nn.Linear | Conv1D, device: torch.device | str | None) -> nn.Module:
    weight = _weight(linear)
    new = bitsandbytes.nn.Linear4bit(
        weight.shape[1], weight.shape[0], bias=linear.bias is not None,
        compute_dtype=weight.dtype, compress_statistics=False, quant_type="nf4", device="meta",
    )  # fmt: skip
    # On a CPU with AVX512-BF16, the first pass without gradients would repack the weights for a kernel that
    # computes in bfloat16 and has no backward pass: every later gradient through the layer would be lost.
    new.support_avx512bf16_for_cpu = False
    parameter = bitsandbytes.nn.Params4bit(
        weight.cpu().contiguous(),
        requires_grad=False,
        blocksize=BLOCK,
        compress_statistics=False,
        quant_type="nf4",
        module=new,
    )
    new.weight = parameter.to(device or weight.device)
    return _finish(new, linear, device)


def _weight(linear: nn.Linear | Conv1D) -> Tensor:
    """Return the weight as [out, in], also for Conv1D."""
    weight: Tensor = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def _finish(new: nn.Module, linear: nn.Linear | Conv1D, device: torch.device | str | None) -> nn.Module:
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.detach().to(device or linear.bias.device), requires_grad=False)
    new.training = linear.training
    return new


def _bitsandbytes() -> ModuleType:
    """Import bitsandbytes, and suppress what it logs about optional parts."""
    logger = logging.getLogger("bitsandbytes")
    silent = logging.NullHandler()
    with Changes() as change, change:
        change.undo(partial(logger.removeHandler, silent))
        logger.addHandler(silent)
        change.set(logger, "propagate", False)
        try:
            return importlib.import_module("bitsandbytes")
        except ImportError as error:
            what = f"opening a model in 8 or 4 bits ({error})"
            raise ModelError(missing("bitsandbytes", what)) from error
