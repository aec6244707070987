"""Mediators: what a causal trace restores or cuts at a token and layer, and how its effects are shown and stored.

One row says everything about a mediator; call, command, table, figures and exports read it. ``register_mediator`` adds
rows. ROME is Meng et al. 2022; Knowledge-Tracing is the project whose module names and files are in
``knowledge_tracing``. This module imports no torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from interpret.errors import InputError, unknown
from interpret.sweep.cells import CELL_SITES, PINNED, UNITS, Cell, CellSite, Pin, grid

ActsOn = Literal["corrupted", "clean"]
ACTS_ON: tuple[ActsOn, ...] = get_args(ActsOn)
WINDOW = "window"
OWN_COLUMNS = (WINDOW,)
"""Columns of a trace's table that only some mediators fill."""
GREY = "#666666"


@dataclass(frozen=True)
class Mediator:
    """One mediator."""

    name: str
    """As calls, options and tables name it; a word of letters, digits and underscores."""
    description: str
    """What is restored, in a few words, for ``--help``."""
    site: CellSite
    """Which activation is restored at a token and layer: ``resid_post``, ``attn_out`` or ``mlp_out``."""
    pins: tuple[Pin, ...] = ()
    """What is held at the token at the values it has without the restoration."""
    acts_on: ActsOn = "corrupted"
    """``corrupted``: the activation of the clean run is restored in the corrupted run. ``clean``: the activation of the
    clean run is cut, and replaced by that of the corrupted run."""
    columns: tuple[str, ...] = ()
    """Which of ``OWN_COLUMNS`` it fills; with ``window``, activations of several layers are restored together."""
    label: str = ""
    """In figures; ``{window}`` becomes the number of layers. The name, if left out."""
    colour: str = GREY
    """In figures."""
    rome_kind: str | None = None
    """``kind`` in ROME's result files; the name, if left out."""
    knowledge_tracing_file: str | None = None
    """Name of the file in which Knowledge-Tracing keeps these effects; None if it has none."""

    @property
    def windowed(self) -> bool:
        """Whether a window of layers is restored together."""
        return WINDOW in self.columns

    def title(self, window: int | None = None) -> str:
        """Return the label, with the number of layers of the window."""
        return (self.label or self.name).format(window="some" if window is None else window)

    def cells(self, n_tokens: int, n_layers: int, window: int) -> list[Cell]:
        """Return the cells of every token and layer, token by token."""
        width = window if self.windowed else 1
        return grid(self.site, n_tokens=n_tokens, n_layers=n_layers, window=width, pins=self.pins)


MEDIATORS: dict[str, Mediator] = {}
"""The mediators by name, in the order in which they were registered."""


def register_mediator(mediator: Mediator) -> None:
    """Add a mediator: from then on calls, commands, tables and figures know it by its name.

    Args:
        mediator: its row.

    Raises:
        InputError: if the name is taken or is no single word, or a field holds something that cannot be traced.

    >>> own = Mediator("both_severed", "a layer's output, with attention and MLP severed", "resid_post",
    ...                pins=(Pin("attn_out"), Pin("mlp_out")))
    >>> register_mediator(own)
    >>> del MEDIATORS["both_severed"]
    """
    what = f"mediator {mediator.name!r}"
    if not re.fullmatch(r"[A-Za-z]\w*", mediator.name):
        raise InputError(f"{what}: a name is one word of letters, digits and underscores")
    if mediator.name in MEDIATORS:
        raise InputError(f"{what} is registered already; give another name")
    _check_choice(what, "site", [mediator.site], [site for site in CELL_SITES if site not in UNITS])
    _check_choice(what, "site of a pin", [pin.site for pin in mediator.pins], PINNED)
    _check_choice(what, "run", [mediator.acts_on], ACTS_ON)
    _check_choice(what, "column", mediator.columns, OWN_COLUMNS)
    MEDIATORS[mediator.name] = mediator


def _check_choice(what: str, kind: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for one in given:
        if one not in allowed:
            raise InputError(f"{what}: {unknown(kind, one, allowed)}")


def check_mediators(mediators: Sequence[str]) -> None:
    """Check that mediators exist.

    Raises:
        InputError: naming the one that does not.
    """
    for mediator in mediators:
        if mediator not in MEDIATORS:
            raise InputError(unknown("mediator", mediator, MEDIATORS))


def mediator_of(name: str) -> Mediator:
    """Return the row of a mediator that a stored table names; a plain one where it is not registered here."""
    return MEDIATORS.get(name) or Mediator(name, name, "resid_post")


HIDDEN = Mediator(
    "hidden",
    "a layer's output",
    "resid_post",
    label="hidden state",
    colour="#7570b3",
    rome_kind="",
    knowledge_tracing_file="ie_wo_sever",
)
ATTN_SEVERED = Mediator(
    "attn_severed",
    "a layer's output, with the token's attention held at its corrupted values in all later layers",
    "resid_post",
    pins=(Pin("attn_out"),),
    label="hidden state,\nattention severed",
    colour="#d95f02",
    knowledge_tracing_file="ie_w_attn_sever",
)
MLP_SEVERED = Mediator(
    "mlp_severed",
    "a layer's output, with the token's MLPs held at their corrupted values in all later layers",
    "resid_post",
    pins=(Pin("mlp_out"),),
    label="hidden state,\nMLP severed",
    colour="#1b9e77",
    knowledge_tracing_file="ie_w_mlp_sever",
)
ATTN_WINDOW = Mediator(
    "attn_window",
    "attention outputs of several layers",
    "attn_out",
    columns=(WINDOW,),
    label="attention, {window} layers",
    colour="#d95f02",
    rome_kind="attn",
)
MLP_WINDOW = Mediator(
    "mlp_window",
    "MLP outputs of several layers",
    "mlp_out",
    columns=(WINDOW,),
    label="MLP, {window} layers",
    colour="#1b9e77",
    rome_kind="mlp",
)
for _own in (HIDDEN, ATTN_SEVERED, MLP_SEVERED, ATTN_WINDOW, MLP_WINDOW):
    register_mediator(_own)
DEFAULT_MEDIATORS = (HIDDEN.name, ATTN_SEVERED.name, MLP_SEVERED.name)
"""What is traced if nothing else is asked for."""
