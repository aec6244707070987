"""Mediators: what a causal trace restores, corrupts or knocks out at a token and layer, and how effects are shown.

A ``Mediator`` holds everything about one mediator; calls, commands, tables, figures and exports read it.
``register_mediator`` adds mediators. ROME is Meng et al. 2022; Knowledge-Tracing is the project whose module names and
files are handled in ``knowledge_tracing``. This module does not import torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from interpret.errors import InputError, unknown
from interpret.sweep.cells import ATTENTION, CELL_SITES, PINNED, UNITS, Cell, CellSite, Knockout, Pin, grid
from interpret.tracing.source_tokens import SUBJECT, check_sources, source_tokens

ActsOn = Literal["corrupted", "clean"]
ACTS_ON: tuple[ActsOn, ...] = get_args(ActsOn)
WINDOW = "window"
OWN_COLUMNS = (WINDOW,)
"""Columns of a trace table that only some mediators fill."""
GREY = "#666666"


@dataclass(frozen=True)
class Mediator:
    """One mediator."""

    name: str
    """Its name in calls, options and tables; one word of letters, digits and underscores that starts with a letter."""
    description: str
    """What is restored, in a few words, for ``--help``."""
    site: CellSite
    """Which activation is restored at a token and layer: ``resid_post``, ``attn_out``, ``mixer_out`` or ``mlp_out``; or
    ``attention``: the token's attention to ``sources`` is knocked out of the clean run."""
    pins: tuple[Pin, ...] = ()
    """Modules whose outputs at the token are held at their values in the run without restoration."""
    acts_on: ActsOn = "corrupted"
    """The run that is patched. ``corrupted``: the clean run's activation is restored in the corrupted run. ``clean``:
    the corrupted run's activation is put into the clean run, that is, the activation is corrupted."""
    sources: str = ""
    """For the site ``attention``, the tokens that the token cannot attend to, see ``source_tokens``. The name followed
    by a colon and other sources, as ``attn_knockout:relation``, is the same mediator with those."""
    columns: tuple[str, ...] = ()
    """The columns of ``OWN_COLUMNS`` that it fills; with ``window``, several layers are restored together."""
    label: str = ""
    """Its label in figures; ``{window}`` is replaced by the number of layers, ``{sources}`` by the sources. Default:
    the name."""
    colour: str = GREY
    """Its colour in figures."""
    rome_kind: str | None = None
    """Its ``kind`` in ROME's result files; None for the name."""
    knowledge_tracing_file: str | None = None
    """Name of Knowledge-Tracing's file of these effects; None if it has none."""

    @property
    def windowed(self) -> bool:
        """Whether a window of layers is restored together."""
        return WINDOW in self.columns

    def title(self, window: int | None = None) -> str:
        """Return the label, with the number of layers of the window."""
        sources = self.sources.replace(",", ", ")
        return (self.label or self.name).format(window="some" if window is None else window, sources=sources)

    def direction(self, metric: str) -> Literal[1, -1]:
        """Return 1 if restoring raises the metric, as a rule, or -1 if corrupting lowers it; the reverse for a rank."""
        return 1 if (self.acts_on == "corrupted") == (metric != "rank") else -1

    def cells(
        self, n_tokens: int, n_layers: int, window: int, subject_span: tuple[int, int] | None = None
    ) -> list[Cell]:
        """Return one cell per token and layer, ordered by token and layer; sources may need the subject."""
        width = window if self.windowed else 1
        cells = grid(self.site, n_tokens=n_tokens, n_layers=n_layers, window=width, pins=self.pins)
        if self.site != ATTENTION:
            return cells
        of_token = [Knockout(source_tokens(self.sources, token, n_tokens, subject_span)) for token in range(n_tokens)]
        return [replace(cell, knockout=of_token[cell.token]) for cell in cells]


UNIT_MEDIATORS = {
    "heads": "the output of each attention head, alone",
    "neurons": "the activation of each MLP neuron, alone, for the 100 with the largest estimates",
}
"""What ``trace_units`` and runs restore at the last token of the subject and of the prompt -> its description."""
MEDIATORS: dict[str, Mediator] = {}
"""The mediators by name, in order of registration."""


def register_mediator(mediator: Mediator) -> None:
    """Add a mediator; calls, commands, tables and figures then accept its name.

    Args:
        mediator: the mediator.

    Raises:
        InputError: if the name already exists or is not a single word, or a field has an unknown value.

    >>> own = Mediator("both_severed", "a layer's output, with attention and MLP severed", "resid_post",
    ...                pins=(Pin("attn_out"), Pin("mlp_out")))
    >>> register_mediator(own)
    >>> del MEDIATORS["both_severed"]
    """
    what = f"mediator {mediator.name!r}"
    if not re.fullmatch(r"[A-Za-z]\w*", mediator.name):
        raise InputError(f"{what}: a name is one word of letters, digits and underscores")
    if mediator.name in MEDIATORS:
        raise InputError(f"{what} already exists; give another name")
    _check_choice(what, "site", [mediator.site], [*(site for site in CELL_SITES if site not in UNITS), ATTENTION])
    _check_choice(what, "site of a pin", [pin.site for pin in mediator.pins], PINNED)
    _check_choice(what, "acts_on", [mediator.acts_on], ACTS_ON)
    _check_choice(what, "column", mediator.columns, OWN_COLUMNS)
    _check_knockout(what, mediator)
    MEDIATORS[mediator.name] = mediator


def _check_choice(what: str, kind: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for one in given:
        if one not in allowed:
            raise InputError(f"{what}: {unknown(kind, one, allowed)}")


def _check_knockout(what: str, mediator: Mediator) -> None:
    if mediator.site != ATTENTION:
        if mediator.sources:
            raise InputError(f"{what}: sources are those of the site attention; leave them out")
        return
    if mediator.acts_on != "clean":
        raise InputError(f"{what}: attention is knocked out of the clean run; give acts_on='clean'")
    try:
        check_sources(mediator.sources)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def mediator_named(name: str) -> Mediator:
    """Return a registered mediator by its name, or by its name, a colon and sources.

    Raises:
        InputError: if it does not exist, or cannot have these sources; the message names it.

    >>> mediator_named("attn_knockout:relation").sources
    'relation'
    """
    if name in UNIT_MEDIATORS:
        raise InputError(
            f"mediator {name!r} restores single units, in runs (interpret.tracing.run); for one prompt, use "
            "interpret.tracing.trace_units"
        )
    base, colon, sources = name.partition(":")
    if base not in MEDIATORS:
        raise InputError(unknown("mediator", name, [*MEDIATORS, *UNIT_MEDIATORS]))
    if not colon:
        return MEDIATORS[base]
    if MEDIATORS[base].site != ATTENTION:
        raise InputError(f"mediator {name!r}: only a mediator that knocks out attention has sources; give {base!r}")
    try:
        check_sources(sources)
    except InputError as error:
        raise InputError(f"mediator {name!r}: {error}") from None
    return replace(MEDIATORS[base], name=name, sources=sources)


def check_mediators(mediators: Sequence[str]) -> None:
    """Check that mediators exist.

    Raises:
        InputError: if one does not exist; the message names it.
    """
    for mediator in mediators:
        mediator_named(mediator)


def check_run_mediators(mediators: Sequence[str], method: str, metric: str) -> None:
    """Check the mediators of a run, which may also be those of ``UNIT_MEDIATORS``.

    Raises:
        InputError: if one does not exist, or not with this method and metric; the message names it.
    """
    grids = [name for name in mediators if name not in UNIT_MEDIATORS]
    check_mediators(grids)
    if method != "exact":
        check_estimable(grids, metric)
        for name in mediators:
            if name not in grids:
                raise InputError(f"mediator {name!r} is not traced by the method {method!r}; give the method exact")
    if "neurons" in mediators:
        check_estimable([], metric)


def check_estimable(mediators: Sequence[str], metric: str) -> None:
    """Check that the effects of mediators on a metric can be estimated from derivatives.

    Raises:
        InputError: if one cannot; the message names it.
    """
    for mediator in mediators:
        if mediator_named(mediator).site == ATTENTION:
            raise InputError(f"mediator {mediator!r} has no first-order estimate: trace it with the method exact")
    if metric == "rank":
        raise InputError("a rank has no derivative, so it has no first-order estimate: trace it with the method exact")


def mediator_of(name: str) -> Mediator:
    """Return the mediator with a name from a stored table; if it is not registered here, one with default values."""
    try:
        return mediator_named(name)
    except InputError:
        return Mediator(name, name, "resid_post")


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
ATTN_KNOCKOUT = Mediator(
    "attn_knockout",
    "attention of the token to the subject, knocked out of the clean run in several layers (attn_knockout:relation, "
    ":itself, :last, :0,3 or another selector of tokens: attention to these)",
    ATTENTION,
    acts_on="clean",
    sources=SUBJECT,
    columns=(WINDOW,),
    label="attention to {sources}\nknocked out, {window} layers",
    colour="#e7298a",
)
ATTN_OUT = Mediator(
    "attn_out", "the attention output of one layer", "attn_out", label="attention output", colour="#a6761d"
)
MLP_OUT = Mediator("mlp_out", "the MLP output of one layer", "mlp_out", label="MLP output", colour="#66a61e")
MIXER_OUT = Mediator(
    "mixer_out",
    "in state space models and hybrids, what one layer has in place of attention, or its attention",
    "mixer_out",
    label="mixer output",
    colour="#1f78b4",
)
for _own in (HIDDEN, ATTN_SEVERED, MLP_SEVERED, ATTN_WINDOW, MLP_WINDOW, ATTN_OUT, MLP_OUT, MIXER_OUT, ATTN_KNOCKOUT):
    register_mediator(_own)
DEFAULT_MEDIATORS = (HIDDEN.name, ATTN_SEVERED.name, MLP_SEVERED.name)
"""The mediators that are traced by default."""
