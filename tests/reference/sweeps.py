"""Reference implementation of sweeps: one full forward pass per cell; and random runs for the tests."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.sweep import Cell, Metric, Pin
from reference.kinds import KINDS, L, V
from reference.tiny import tiny_model
from reference.tracing import patched

CLOSE = {"rtol": 1e-5, "atol": 1e-9}
T, S, ANSWER = 6, 3, 5
MODELS = {kind: tiny_model(kind) for kind in KINDS}
"""One model per kind; tests must not change them."""
P = {"p": Metric("probability", (ANSWER,))}


def runs(
    model: PreTrainedModel,
    seed: int = 0,
    *,
    n_tokens: int = T,
    n_samples: int = S,
    n_donors: int = 1,
    corrupted: slice = slice(1, 3),
) -> tuple[Tensor, Tensor]:
    """Return random runs as embeddings: bases, [S, T, width], with noise on the tokens ``corrupted``, and donors.

    The donors are [n_donors, T, width].
    """
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (n_donors, n_tokens), generator=chance)
    donor = model.get_input_embeddings()(ids).detach()
    base = donor.repeat(n_samples // n_donors, 1, 1)
    base[:, corrupted] += 0.5 * torch.randn(base[:, corrupted].shape, generator=chance)
    return base, donor


def brute_force(model: PreTrainedModel, base: Tensor, donor: Tensor, cell: Cell) -> Tensor:
    """Return the logits of a cell, [S, T, V], from a full forward pass."""
    pins = {pin.site: _held_layers(cell, pin) for pin in cell.pins}
    restored = range(cell.start, cell.stop)
    return patched(model, base, donor, site=cell.site, token=cell.token, layers=restored, unit=cell.unit, pins=pins)


def _held_layers(cell: Cell, pin: Pin) -> list[int]:
    layers = range(L) if pin.layers == "all" else range(cell.stop, L)
    restored = range(cell.start, cell.stop) if pin.site == cell.site else ()
    return [layer for layer in layers if layer not in restored]


def probability(logits: Tensor) -> Tensor:
    """Return the probability of the answer after the last token, [S]."""
    return logits[:, -1].double().softmax(-1)[:, ANSWER]


def assert_exact(
    model: PreTrainedModel, base: Tensor, donor: Tensor, cells: Sequence[Cell], found: Any, padding: int = 0
) -> None:
    """Compare a sweep with full forward passes, which may have ``padding`` extra tokens on the right."""
    base, donor = (torch.cat([run, run[:, :1].expand(-1, padding, -1)], dim=1) for run in (base, donor))
    for cell, values in zip(cells, found.values["p"], strict=True):
        logits = brute_force(model, base, donor, cell)
        torch.testing.assert_close(values, probability(logits[:, : logits.shape[1] - padding]), **CLOSE)
