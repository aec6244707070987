"""The base and donor runs of a sweep: embeddings, checks, the first token that differs, and the memory limit."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import (
    Anatomy,
    check_evaluating,
    check_length,
    check_logits,
    check_parts,
    input_device,
    neuron_numbers,
    word_embeddings,
)
from interpret.errors import InputError, UnsupportedModelError
from interpret.sweep.cells import Cell

CPU_MEMORY = 1 << 30
"""Bytes that a sweep may use on a CPU besides the two recorded runs, unless the caller sets a limit."""


def embedded(model: PreTrainedModel, name: str, run: Tensor) -> Tensor:
    """Return the word embeddings of a run, [B, T, width], on the model's device.

    Args:
        model: the model whose embeddings are used.
        name: name of the run in error messages.
        run: [B, T] token ids, or [B, T, width] word embeddings.

    Raises:
        InputError: if the run has another shape or dtype.
    """
    run = run.to(input_device(model))
    if run.dim() == 2 and not run.is_floating_point():
        return word_embeddings(model, run)
    if run.dim() == 3 and run.is_floating_point():
        return run.to(model.dtype)
    raise InputError(
        f"{name} has shape {tuple(run.shape)} and dtype {run.dtype}; "
        "give token ids [samples, tokens] or word embeddings [samples, tokens, width]"
    )


def check_runs(model: PreTrainedModel, base: Tensor, donor: Tensor) -> None:
    """Check that the base, [S, T, width], and the donor, [S or 1, T, width], have matching shapes.

    Raises:
        InputError: if they do not match, if they have more tokens than the model reads, or if the model is in training
            mode.
        UnsupportedModelError: if logits from the model's states are not its own, or the parts of its layers do not add
            up, or its family is not supported.
    """
    check_evaluating(model)
    check_length(model, "the base run", base.shape[1])
    check_logits(model)
    check_parts(model)
    if base.shape[1] != donor.shape[1]:
        raise InputError(
            f"the donor has {donor.shape[1]} tokens, the base {base.shape[1]}: "
            "values are restored token by token, so both need the same length"
        )
    if len(donor) not in (1, len(base)):
        raise InputError(
            f"the donor has {len(donor)} rows, the base {len(base)}; give one donor row per base row, or one for all"
        )


def first_difference(base: Tensor, donor: Tensor) -> int:
    """Return the first token at which two runs, [S or 1, T, D], differ in any sample; T if they do not differ."""
    differs = (base != donor).any(dim=-1).any(dim=0)
    return int(differs.nonzero()[0]) if differs.any() else len(differs)


def has_effect(cell: Cell, unlike: int) -> bool:
    """Return whether a cell can change the base's run, which is like the donor's before the token ``unlike``."""
    return cell.token >= unlike if cell.knockout is None else bool(cell.knockout.sources)


def usable_memory(memory: int | None, device: torch.device) -> int:
    """Return how many bytes may be used: ``memory``, or else half of a GPU's free memory, or 1 GiB on a CPU."""
    if memory is not None:
        return memory
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_MEMORY


def check_mixers(anatomy: Anatomy, cells: Sequence[Cell]) -> None:
    """Check that a model has layers without attention, if a cell restores what they have in its place.

    Raises:
        UnsupportedModelError: if it has none; the message names the first such cell.
    """
    for index, cell in enumerate(cells):
        if cell.site == "mixer_out" and not anatomy.family.mixer:
            try:
                anatomy.module(cell.start, cell.site)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"cells[{index}]: {error}") from None


def neurons_of(anatomy: Anatomy, cells: Sequence[Cell]) -> list[int]:
    """Return the number of neurons of each layer, if a cell is a neuron; else zeros.

    Args:
        anatomy: the model's parts.
        cells: the cells of a sweep.

    Raises:
        UnsupportedModelError: if a cell is a neuron, and neurons cannot be read.
    """
    layers = range(len(anatomy.layers))
    wanted = any(cell.site == "neurons" for cell in cells)
    return [neuron_numbers(anatomy, layer).count if wanted else 0 for layer in layers]
