"""Mediators: what is restored at a token and layer, and what is held there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from transformers import PreTrainedModel

from interpret.errors import InputError, unknown
from interpret.sweep import Cell, CellSite, Pin, grid
from interpret.tracing.inputs import TraceInputs

Mediator = Literal["hidden", "attn_severed", "mlp_severed", "attn_window", "mlp_window"]


@dataclass(frozen=True)
class _Mediation:
    """What a mediator restores at a token, and what it holds there at the corrupted values in later layers."""

    site: CellSite
    pins: tuple[Pin, ...] = ()
    windowed: bool = False


MEDIATORS: Mapping[Mediator, _Mediation] = MappingProxyType(
    {
        "hidden": _Mediation("resid_post"),
        "attn_severed": _Mediation("resid_post", (Pin("attn_out"),)),
        "mlp_severed": _Mediation("resid_post", (Pin("mlp_out"),)),
        "attn_window": _Mediation("attn_out", windowed=True),
        "mlp_window": _Mediation("mlp_out", windowed=True),
    }
)


def check_mediators(mediators: Sequence[Mediator]) -> None:
    """Check that mediators exist.

    Raises:
        InputError: naming the one that does not.
    """
    for mediator in mediators:
        if mediator not in MEDIATORS:
            raise InputError(unknown("mediator", mediator, MEDIATORS))


def grid_of(model: PreTrainedModel, mediator: Mediator, inputs: TraceInputs, window: int) -> list[Cell]:
    """Return a mediator's cells, token by token and layer by layer."""
    mediation = MEDIATORS[mediator]
    return grid(
        mediation.site,
        n_tokens=len(inputs.tokens.ids),
        n_layers=model.config.num_hidden_layers,
        window=window if mediation.windowed else 1,
        pins=mediation.pins,
    )
