"""The two runs of a sweep, the base and the donor, before they are recorded, and where they differ."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import check_evaluating, input_device
from interpret.engine.recording import RecordedRun
from interpret.errors import InputError

CPU_MEMORY = 1 << 30
"""Bytes a sweep may use on a CPU beside the two recorded runs, where the caller does not say."""


def embedded(model: PreTrainedModel, name: str, run: Tensor) -> Tensor:
    """Return the word embeddings of a run, [B, T, width], on the model's device.

    Args:
        model: brings the embeddings.
        name: of the run, for messages.
        run: [B, T] token ids, or [B, T, width] word embeddings.

    Raises:
        InputError: if the run is neither.
    """
    run = run.to(input_device(model))
    if run.dim() == 2 and not run.is_floating_point():
        return model.get_input_embeddings()(run)
    if run.dim() == 3 and run.is_floating_point():
        return run.to(model.dtype)
    raise InputError(
        f"{name} has shape {tuple(run.shape)} and dtype {run.dtype}; "
        "give token ids [samples, tokens] or word embeddings [samples, tokens, width]"
    )


def check_runs(model: PreTrainedModel, base: Tensor, donor: Tensor) -> None:
    """Check that runs, [S, T, width] and [S or 1, T, width], go together.

    Raises:
        InputError: if they do not, or the model is not in evaluation mode.
    """
    check_evaluating(model)
    if base.shape[1] != donor.shape[1]:
        raise InputError(
            f"the donor has {donor.shape[1]} tokens, the base {base.shape[1]}: "
            "values are restored token by token, so both need the same length"
        )
    if len(donor) not in (1, len(base)):
        raise InputError(f"{len(donor)} donor rows for {len(base)} base rows: give as many, or one for all")


def first_difference(base: RecordedRun, donor: RecordedRun) -> int:
    """Return the first token at which any sample of the runs differs; T where none does."""
    differs = (base.states[0] != donor.states[0]).any(dim=-1).any(dim=0)
    return int(differs.nonzero()[0]) if differs.any() else len(differs)


def usable_memory(memory: int | None, device: torch.device) -> int:
    """Return how many bytes may be used: what the caller says, or by default half of what is free on a GPU."""
    if memory is not None:
        return memory
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_MEMORY
