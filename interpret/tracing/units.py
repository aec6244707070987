"""Single heads and neurons as mediators of one prompt: which of them, restored, bring the answer back.

A unit is an attention head (before the output projection) or an MLP neuron (after the activation). A model has many
neurons, so by default all are estimated (attribution patching) and those with the largest estimates are run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import NeuronNumbers, anatomy_of, neuron_numbers, text_config, unwrapping
from interpret.display.heatmaps import Band, Heatmap, Panel, headings, plain_headings, readable, small_probability
from interpret.display.shown import Rows, Shown, grouped
from interpret.display.view import View
from interpret.errors import InputError, unknown
from interpret.facts.buckets import token_buckets
from interpret.facts.files import Fact
from interpret.finite import warn
from interpret.prompts.spelling import join_pieces, pieces
from interpret.prompts.tokens import select_tokens
from interpret.records import APPROXIMATE, EXACT, UnitCell
from interpret.stats import Floats
from interpret.sweep import Cell, first_order
from interpret.sweep.cells import UNITS
from interpret.tracing.exact import run_exactly
from interpret.tracing.inputs import TraceInputs, TraceSettings, trace_inputs
from interpret.tracing.mediators import check_estimable
from interpret.tracing.result import cells_not_finite
from interpret.tracing.tables import METRIC_WORDS, metric_of
from interpret.work.progress import showing

UnitSite = Literal["heads", "neurons"]
NEURONS = 100
"""Number of neurons that are run by default."""
SHOWN = 20
"""Number of neurons that are shown."""


@dataclass(frozen=True)
class UnitTrace(Shown):
    """The effects of the units of a site: P tokens, L layers, U heads or neurons of a layer, S noise samples."""

    effects: Floats = field(repr=False)
    """[P, L, U], indirect effects, mean over samples; NaN for units that a layer does not have."""
    exact: NDArray[np.bool_] = field(repr=False)
    """[P, L, U], True for effects from runs; the others are first-order estimates."""
    numbers: tuple[NeuronNumbers, ...]
    """[L], how the units of each layer are numbered: by expert, if they are the neurons of a mixture of experts."""
    site: UnitSite
    """``heads`` or ``neurons``."""
    metric: str
    """What is read, see ``TraceSettings``."""
    high: float
    """The metric in the clean run."""
    low: float
    """The metric in the corrupted runs, mean over samples."""
    positions: tuple[int, ...]
    """[P], positions of the tokens at which units were restored."""
    tokens: tuple[str, ...]
    """[T], texts of the prompt's tokens."""
    answer: str
    """Text of the tokens that are read."""
    prompt: str
    """The text of the prompt."""
    subject_span: tuple[int, int]
    """Position of the first token of the subject, and one past the last."""

    @property
    def total_effect(self) -> float:
        """TE, the metric in the clean run minus that in the corrupted runs."""
        return self.high - self.low

    @property
    def exist(self) -> NDArray[np.bool_]:
        """[P, L, U], False for units that a layer does not have: an MLP without experts may have fewer neurons."""
        counts = np.array([layer.count for layer in self.numbers])
        return np.broadcast_to(np.arange(self.effects.shape[2]) < counts[:, None], self.effects.shape)

    def top(self, count: int = 10) -> pd.DataFrame:
        """Return the exact cells with the largest absolute effects, the largest first, as ``to_frame`` does."""
        frame = self.to_frame()
        frame = frame[(frame["method"] == EXACT) & np.isfinite(frame["indirect_effect"])]
        return frame.sort_values("indirect_effect", key=abs, ascending=False, kind="stable").head(count)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per token, layer and unit."""
        place, layer, unit = np.nonzero(self.exist)
        effects = self.effects[self.exist]
        positions = np.array(self.positions)[place]
        return pd.DataFrame(
            {
                "site": self.site,
                "layer_idx": layer,
                "unit": unit,
                "expert": self._experts()[layer, unit],
                "token_idx": positions,
                "token": np.array(self.tokens, dtype=object)[positions],
                "metric": self.metric,
                "method": np.where(self.exact[self.exist], EXACT, APPROXIMATE),
                "indirect_effect": effects,
                "share": effects / self.total_effect,
                "total_effect": self.total_effect,
            }
        )

    def _experts(self) -> NDArray[np.object_]:
        """Return the expert of each unit, [L, U], as in ``NeuronNumbers.place``."""
        named = [[layer.place(unit)[0] for unit in range(layer.count)] for layer in self.numbers]
        width = self.effects.shape[2]
        return np.array([names + [""] * (width - len(names)) for names in named], dtype=object)

    def view(self) -> View:
        """Return what is shown: heads by layers, one heat map per token; or the neurons with the largest effects."""
        return View(
            title=f"Causal trace of single {self.site}",
            unit=_unit(metric_of(self.metric), [self.site]),
            panels=lambda: iter([self._panel()]),
            n_panels=1,
            facts={"exact": f"{self.exact[self.exist].mean():.1%} of the {self.site}"},
            warning=cells_not_finite([self.effects[self.exist]]),
        )

    def _panel(self) -> Panel:
        tokens = [(position, self.tokens[position]) for position in self.positions]
        shown = np.ones_like(self.exact) if self.site == "heads" else self.exact
        grids = _maps_of_units(self.site, tokens, self.effects, shown)
        return Panel(readable(self.prompt), grids, _read(self.answer, self.metric, self.high, self.low))


def _read(answer: str, metric: str, high: float, low: float) -> str:
    """Return the answer with its values in the clean and in the corrupted runs."""
    values = f"{small_probability(high)}, {small_probability(low)} corrupted"
    return f"{readable(answer)} ({metric_of(metric)} {values})"


def _unit(measured: str, sites: Iterable[str]) -> str:
    """Return what the effects of single heads or neurons are."""
    one = " or ".join(UNITS[site] for site in sites)
    return f"indirect effect: {measured} with one {one} restored − {measured} in the corrupted run"


def _maps_of_units(
    site: str, tokens: Sequence[tuple[int, str]], effects: Floats, shown: NDArray[np.bool_]
) -> list[Heatmap]:
    """Return the heat maps of a site: heads by layers, one for each token; or the neurons with the largest effects.

    Args:
        site: ``heads`` or ``neurons``.
        tokens: position and text of P tokens.
        effects: [P, L, U].
        shown: [P, L, U], False for effects that are left blank.
    """
    if site == "heads":
        _, n_layers, n_heads = effects.shape
        layers, heads = plain_headings(range(n_layers)), plain_headings(range(n_heads))
        return [
            Heatmap(
                f"{readable(token)} (token {position})",
                "head",
                layers,
                [Band("", heads, of_token.T, blank=~of_shown.T)],
                across="layer",
                compact=True,
            )
            for (position, token), of_token, of_shown in zip(tokens, effects, shown, strict=True)
        ]
    sizes = np.where(shown & np.isfinite(effects), np.abs(effects), -1.0).ravel()
    largest = [index for index in np.argsort(-sizes, kind="stable")[:SHOWN] if sizes[index] >= 0]
    chosen = list(dict.fromkeys(tuple(np.unravel_index(index, effects.shape)[1:]) for index in largest))
    values = np.array([effects[:, layer, unit] for layer, unit in chosen]).reshape(-1, len(tokens))
    blank = ~np.array([shown[:, layer, unit] for layer, unit in chosen], dtype=bool).reshape(values.shape)
    rows = plain_headings([f"{layer}.{unit}" for layer, unit in chosen])
    across = headings([f"{token} {position}" for position, token in tokens])
    return [Heatmap("largest effects", "layer.neuron", across, [Band("", rows, values, blank=blank)])]


class UnitTraces(Rows[UnitCell]):
    """Rows of single heads and neurons, of one fact or many: those of ``units.csv`` of a run."""

    record_type = UnitCell

    def view(self) -> View:
        """Return what is shown: for each fact, heads by layers at each token, and the neurons with the largest effects.

        Heads and neurons that were not run are left blank. If there are several metrics, each has its own panels.
        """
        shown = grouped(self, lambda row: (row.name, row.metric))
        facts, metrics, sites = (
            list(dict.fromkeys(getattr(row, part) for row in self)) for part in ("name", "metric", "mediator")
        )
        return View(
            title=f"Causal trace of single {' and '.join(sites)}" + (f", {len(facts)} facts" if len(facts) > 1 else ""),
            unit=_unit(metric_of(metrics[0]) if len(metrics) == 1 else "the metric", sites),
            panels=lambda: (self._panel(rows, named=len(facts) > 1, measured=len(metrics) > 1) for rows in shown),
            n_panels=len(shown),
            warning=cells_not_finite([np.array([row.indirect_effect for row in self])]),
        )

    def _panel(self, rows: Sequence[UnitCell], *, named: bool, measured: bool) -> Panel:
        first = rows[0]
        grids = [grid for of_site in grouped(rows, lambda row: row.mediator) for grid in _maps_of_rows(of_site)]
        answer = _read(first.answer, first.metric, first.clean, first.corrupted)
        name = ", ".join([first.name] * named + [METRIC_WORDS.get(first.metric, first.metric)] * measured)
        return Panel(readable(first.prompt), grids, answer, name=name)


def _maps_of_rows(rows: Sequence[UnitCell]) -> list[Heatmap]:
    """Return the heat maps of one fact and one site."""
    tokens = dict(sorted({row.token_idx: row.token for row in rows}.items()))
    places = {position: place for place, position in enumerate(tokens)}
    shape = (len(tokens), max(row.layer_idx for row in rows) + 1, max(row.unit for row in rows) + 1)
    effects, exact = np.zeros(shape), np.zeros(shape, dtype=bool)
    for row in rows:
        cell = places[row.token_idx], row.layer_idx, row.unit
        effects[cell], exact[cell] = row.indirect_effect, True
    return _maps_of_units(rows[0].mediator, list(tokens.items()), effects, exact)


@unwrapping
@torch.no_grad()
def trace_units(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | Sequence[int] | None = None,
    *,
    site: UnitSite = "heads",
    tokens: str = "subject_last,last",
    top: int | None = None,
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
    foil: str | Sequence[int] | None = None,
    progress: bool = True,
) -> UnitTrace:
    """Restore single heads or neurons in the corrupted runs of one prompt.

    Args:
        model: as in ``trace``; its layers must be run part by part, and for neurons its MLPs too.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        site: ``heads`` or ``neurons``.
        tokens: the tokens at which units are restored, as positions, slices, ``subject``, ``subject_last`` or ``last``.
        top: number of units to run, those with the largest estimates over all tokens and layers; by default, all heads
            and 100 neurons. The others keep their estimates.
        settings: how the prompt is corrupted and what is read; None for the defaults. Windows do not apply.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.
        foil: as in ``trace``.
        progress: as in ``trace``.

    Returns:
        The effect of every unit; ``top`` lists the largest.

    Raises:
        InputError: as ``trace`` raises; also if a token does not exist, or ``top`` is below 1.
        UnsupportedModelError: if the layers of the model, or for neurons its MLPs, cannot be run part by part.

    Example:
        >>> found = trace_units(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> found.top(5)[["layer_idx", "unit", "token", "indirect_effect"]]  # doctest: +SKIP
    """
    settings = settings or TraceSettings()
    if site not in get_args(UnitSite):
        raise InputError(unknown("site", site, get_args(UnitSite)))
    if top is not None and top < 1:
        raise InputError(f"top is {top}; give at least 1 of the {site} to run")
    if top is not None or site == "neurons":
        check_estimable([], settings.metric)
    inputs = trace_inputs(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
        foil=foil,
    )
    positions = select_tokens(tokens, inputs.tokens)
    numbers = _numbers(model, site)
    shape = (len(positions), len(numbers), max(layer.count for layer in numbers))
    places = [at for at in np.ndindex(shape) if at[2] < numbers[at[1]].count]
    cells = [Cell(site, positions[place], layer, layer + 1, unit) for place, layer, unit in places]
    with showing("Tracing", shown=progress):
        found, run, low, high = _effects(model, inputs, settings, cells, top or {"neurons": NEURONS}.get(site))
    effects, exact = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    at = tuple(np.array(places).T)
    effects[at], exact[at] = found, run
    result = UnitTrace(
        effects=effects,
        exact=exact,
        numbers=numbers,
        site=site,
        metric=inputs.metric.kind,
        high=high,
        low=low,
        positions=tuple(positions),
        tokens=tuple(inputs.tokens.pieces),
        answer=join_pieces(pieces(tokenizer, inputs.answer_ids)),
        prompt=inputs.tokens.text,
        subject_span=inputs.span,
    )
    warn(cells_not_finite([result.effects[result.exist]]))
    return result


def unit_cells(fact: Fact, found: UnitTrace) -> list[UnitCell]:
    """Return one row per head or neuron that was run, ordered by token, layer and unit."""
    buckets = token_buckets(len(found.tokens), found.subject_span)
    return [
        UnitCell(
            name=fact.name,
            prompt=fact.prompt,
            answer=found.answer,
            metric=found.metric,
            mediator=found.site,
            layer_idx=layer,
            unit=unit,
            expert=found.numbers[layer].place(unit)[0],
            token_idx=found.positions[place],
            token=found.tokens[found.positions[place]],
            bucket_rome=buckets[found.positions[place]] or "",
            clean=found.high,
            corrupted=found.low,
            indirect_effect=float(found.effects[place, layer, unit]),
            total_effect=found.total_effect,
        )
        for place, layer, unit in np.argwhere(found.exact).tolist()
    ]


def _numbers(model: PreTrainedModel, site: UnitSite) -> tuple[NeuronNumbers, ...]:
    """Return how the heads or neurons of each layer are numbered."""
    anatomy = anatomy_of(model)
    layers = range(len(anatomy.layers))
    if site == "neurons":
        return tuple(neuron_numbers(anatomy, layer) for layer in layers)
    return (NeuronNumbers(0, 0, text_config(model).num_attention_heads),) * len(layers)


def _effects(
    model: PreTrainedModel, inputs: TraceInputs, settings: TraceSettings, cells: Sequence[Cell], count: int | None
) -> tuple[Floats, NDArray[np.bool_], float, float]:
    """Return the effects of cells, which of them are exact, and the metric in the corrupted and the clean runs."""
    base, donor = inputs.base_and_donor("corrupted")
    effects, exact = np.zeros(len(cells)), np.ones(len(cells), dtype=bool)
    if count is not None:
        effects = first_order(model, base, donor, cells, inputs.metric, memory=settings.memory).effects.mean(1).numpy()
        sizes = np.where(np.isfinite(effects), np.abs(effects), -1.0)
        exact = np.zeros(len(cells), dtype=bool)
        exact[np.argsort(-sizes, kind="stable")[:count]] = True
    chosen = np.flatnonzero(exact)
    found = run_exactly(model, inputs, settings, base, donor, [cells[index] for index in chosen.tolist()])
    values, lows, high = (of_metrics[0] for of_metrics in found)
    effects[chosen] = (values - lows).mean(dim=1).numpy()
    return effects, exact, lows.mean().item(), high[0].item()
