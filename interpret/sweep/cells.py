"""The cells of a sweep; each cell is one patched run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

from interpret.errors import InputError, unknown

RestoredSite = Literal["resid_post", "attn_out", "mixer_out", "mlp_out", "heads", "neurons"]
"""The sites of ``interpret.activations`` that can be restored: the output of a decoder layer, of its attention, of what
it has in place of attention, of its MLP, of one attention head (before the output projection) or of one MLP neuron
(after the activation). In models that have layers of both kinds, ``mixer_out`` is ``attn_out`` where there is
attention."""
CELL_SITES = get_args(RestoredSite)
CellSite = RestoredSite | Literal["attention"]
"""What a cell changes: a restored site, or the attention of a token to others, which is knocked out."""
ATTENTION: Literal["attention"] = "attention"
UNITS = {"heads": "head", "neurons": "neuron"}
"""The name of one unit, for the sites that have units."""
PINNED = ("attn_out", "mlp_out")
PIN_LAYERS = ("later", "all")


@dataclass(frozen=True)
class Pin:
    """Severs a module: at the cell's token, its output is held at its value in the base run."""

    site: Literal["attn_out", "mlp_out"]
    layers: Literal["later", "all"] = "later"
    """later: in the layers after the restored ones. all: in all layers except where the site itself is restored;
    this differs from "later" only before and within the restored layers."""


@dataclass(frozen=True)
class Knockout:
    """Attention that is knocked out: before the softmax, the scores of some tokens are set to -inf."""

    sources: tuple[int, ...]
    """The tokens that the cell's token cannot attend to; itself or earlier ones."""
    heads: tuple[tuple[int, int], ...] | None = None
    """The heads in which it cannot, each as (layer, head); None for all heads."""

    def of_layer(self, layer: int) -> list[int] | None:
        """Return the heads of a layer in which attention is knocked out; None for all."""
        return None if self.heads is None else [head for at, head in self.heads if at == layer]


@dataclass(frozen=True)
class Cell:
    """One patched run: the base run with the donor's values at one token, or without some of the token's attention.

    A token that is left with no token to attend to gets nothing from these heads: their outputs are 0.
    """

    site: CellSite
    token: int
    start: int
    """The first restored layer; for ``resid_post``, -1 is the input of layer 0."""
    stop: int
    """One past the last restored layer."""
    unit: int | None = None
    """Index of the head or neuron, for the sites that have units."""
    pins: tuple[Pin, ...] = ()
    knockout: Knockout | None = None
    """What is knocked out in the layers, for the site ``attention``; the donor is not used then."""

    @property
    def one_unit(self) -> str:
        """The name of one unit of the cell's site."""
        return UNITS[self.site]

    def restores(self, site: str, layer: int) -> bool:
        """Return whether this site of this layer is written: with the donor's value, or by knocking out attention."""
        return self.site == site and self.start <= layer < self.stop

    def holds(self, site: str, layer: int) -> bool:
        """Return whether the base's value is written at this site of this layer."""
        return not self.restores(site, layer) and any(
            pin.site == site and (pin.layers == "all" or layer >= self.stop) for pin in self.pins
        )


def grid(
    site: CellSite,
    *,
    n_tokens: int,
    n_layers: int,
    window: int = 1,
    unit: int | None = None,
    pins: Sequence[Pin] = (),
) -> list[Cell]:
    """Return one cell per token and layer, ordered by token.

    >>> [(cell.token, cell.start, cell.stop) for cell in grid("mlp_out", n_tokens=1, n_layers=3, window=2)]
    [(0, 0, 1), (0, 0, 2), (0, 1, 3)]
    """
    windows = [window_around(layer, window, n_layers) for layer in range(n_layers)]
    return [Cell(site, token, *layers, unit, tuple(pins)) for token in range(n_tokens) for layers in windows]


def window_around(layer: int, width: int, n_layers: int) -> tuple[int, int]:
    """Return the first layer of a window and one past its last (ROME, ``trace_important_window``).

    >>> window_around(4, 10, 30), window_around(6, 3, 30), window_around(3, 10, 4)
    ((0, 9), (5, 8), (0, 4))
    """
    if width < 1:
        raise InputError(f"a window of width {width} contains no layer; give a width of at least 1")
    return max(0, layer - width // 2), min(n_layers, layer + ceil(width / 2))


def check_cells(cells: Sequence[Cell], n_tokens: int, n_layers: int, n_heads: int, n_neurons: Sequence[int]) -> None:
    """Check that every cell exists in the model and the prompt; ``n_neurons`` is that of each layer.

    Raises:
        InputError: if a cell does not exist; the message names the first one.
    """
    for index, cell in enumerate(cells):
        here = n_neurons[max(0, cell.start) : cell.stop]
        problem = _problem(cell, n_tokens, n_layers, {"heads": n_heads, "neurons": min(here, default=0)})
        if problem:
            raise InputError(f"cells[{index}]: {problem}")


def _problem(cell: Cell, n_tokens: int, n_layers: int, units: dict[str, int]) -> str:
    """Return what is wrong with a cell; "" if it is valid."""
    if cell.site not in (*CELL_SITES, ATTENTION):
        return unknown("site", cell.site, [*CELL_SITES, ATTENTION])
    if not 0 <= cell.token < n_tokens:
        return f"token {cell.token} does not exist; this prompt has tokens 0 to {n_tokens - 1}"
    lowest = -1 if cell.site == "resid_post" else 0
    if not lowest <= cell.start < cell.stop <= n_layers:
        return f"layers {cell.start} to {cell.stop - 1} do not exist; this model has layers 0 to {n_layers - 1}"
    if cell.site in units and (cell.unit is None or not 0 <= cell.unit < units[cell.site]):
        return f"{cell.one_unit} {cell.unit} does not exist; a layer has {cell.site} 0 to {units[cell.site] - 1}"
    if cell.site not in units and cell.unit is not None:
        return f"site {cell.site} has no units; leave out unit={cell.unit}"
    if (cell.knockout is not None) != (cell.site == ATTENTION):
        return "give a knockout for the site attention, and for no other site"
    if cell.knockout is not None and (problem := _knockout_problem(cell.knockout, cell.token, n_layers, units)):
        return problem
    for pin in cell.pins:
        if pin.site not in PINNED:
            return unknown("site of a pin", pin.site, PINNED)
        if pin.layers not in PIN_LAYERS:
            return unknown("layers of a pin", pin.layers, PIN_LAYERS)
    return ""


def _knockout_problem(knockout: Knockout, token: int, n_layers: int, units: dict[str, int]) -> str:
    """Return what is wrong with a knockout of a token's attention; "" if it is valid."""
    for source in knockout.sources:
        if not 0 <= source <= token:
            return f"token {token} does not attend to token {source}; it attends to tokens 0 to {token}"
    for layer, head in knockout.heads or ():
        if not (0 <= layer < n_layers and 0 <= head < units["heads"]):
            return (
                f"head {head} of layer {layer} does not exist; this model has layers 0 to {n_layers - 1}, each with "
                f"heads 0 to {units['heads'] - 1}"
            )
    return ""
