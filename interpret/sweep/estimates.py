"""First-order estimates of a sweep: the effects of all cells, approximated with a few backward passes.

Attribution patching (Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Syed, Rager & Conmy
2023, arXiv:2310.10348). With v the value that a cell restores and m the metric, the cell's estimated effect is

    (v of the donor - v of the base) . dm/dv at the base run,

which is exactly the slope, at fraction 0, of the effect that ``run_sweep`` gives when a fraction of the difference is
restored. Each cell has its own derivative: what it pins is constant at its token; and if a window of layers is
restored, each layer's output is overwritten and so does not depend on the layers restored before it. ``backward``
explains how this is computed for all tokens at once. RelP replaces the derivative by coefficients of layer-wise
relevance propagation (``engine.relevance``). Letters are those of ``engine.layers``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import text_config, unwrapping
from interpret.anatomy.passes import grad_mode
from interpret.device import in_float64
from interpret.engine.layers import Point
from interpret.engine.recording import RecordedRun
from interpret.engine.relevance import with_rules
from interpret.engine.trunk import Trunk, trunk_of
from interpret.errors import InputError
from interpret.records import APPROXIMATE, RELP, EstimateMethod
from interpret.sweep.backward import Route, derivatives
from interpret.sweep.base_and_donor import check_runs, embedded, first_difference, neurons_of, usable_memory
from interpret.sweep.cells import UNITS, Cell, CellSite, Pin, check_cells
from interpret.sweep.kept_runs import recorded
from interpret.sweep.metrics import Metric, check_metrics, read, together


@dataclass(frozen=True)
class FirstOrder:
    """The estimated effect of every cell."""

    cells: tuple[Cell, ...]
    effects: Tensor
    """[cells, S], float64 on the CPU: estimated change of the metric by each cell."""
    base: Tensor
    """[S], the exact metric of the base runs."""
    donor: Tensor
    """[S], or [1] for a donor of one row: the exact metric of the donor runs."""


@dataclass(frozen=True)
class _Plan:
    """What all samples share."""

    trunk: Trunk
    back: Trunk
    """The parts through which derivatives are taken; with RelP, they have its rules."""
    cells: tuple[Cell, ...]
    routes: tuple[Route, ...]
    """For each cell, the path of its derivative."""
    metric: Metric
    n_read: int
    """Number of final positions that the metric reads."""
    points: frozenset[Point]
    """The points recorded in the donor's run, besides the states."""
    n_neurons: int
    """The largest number of neurons of a layer; 0 if no cell is a neuron."""

    @property
    def has_rules(self) -> bool:
        """Whether derivatives are taken through RelP's rules, which round values otherwise than the model does."""
        return self.back is not self.trunk


@unwrapping
def first_order(
    model: PreTrainedModel,
    base: Tensor,
    donor: Tensor,
    cells: Sequence[Cell],
    metric: Metric,
    *,
    method: EstimateMethod = APPROXIMATE,
    memory: int | None = None,
) -> FirstOrder:
    """Estimate the effect of every cell to first order.

    The cost is one forward pass of the donor, and two forward passes and one backward pass of the base runs. Each kind
    of severing adds a forward and a backward pass, and windows of w layers add a forward and w backward passes. These
    additional backward passes skip the severed modules, and the keys and values of other tokens. All but the first pass
    of each run compute only the tokens from the first difference of the runs on. No derivatives with respect to weights
    are computed, and no ``.grad`` is written. Everything is computed in the model's dtype: with half precision or
    quantised weights, the derivatives are as inexact as the model. For a probability, its logarithm is differentiated,
    so that the derivatives of small probabilities do not vanish.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        base: the runs the cells would patch: [S, T] token ids, or word embeddings, [S, T, width].
        donor: the runs whose values would be restored, in the same forms; S rows, or one for all.
        cells: what would be restored: ``resid_post`` of one layer from 0 on, with or without pins; ``attn_out`` or
            ``mlp_out`` of any number of layers, without pins; or a head or neuron of one layer, without pins.
        metric: what is read.
        method: ``approximate``: from derivatives. ``relp``: from RelP's coefficients (arXiv:2508.21258).
        memory: bytes that may be used besides the donor's run, see ``run_sweep``; samples that do not fit together are
            processed in several batches.

    Returns:
        The estimated effect of every cell in every sample.

    Raises:
        InputError: if the runs, a cell or the metric are invalid.
        UnsupportedModelError: if the model's family is not supported, or the model does not compute as its family does;
            for ``relp``, also if it has mixtures of experts, or parts without a rule.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2)).eval()
    >>> base, donor = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 2, 4]])
    >>> first_order(model, base, donor, [Cell("resid_post", 1, 0, 1)], Metric("logit", (7,))).effects.shape
    torch.Size([1, 1])
    """
    with torch.inference_mode(False), grad_mode(False):
        # Tensors created in inference mode cannot be differentiated; copies made outside of it can.
        base, donor = (embedded(model, name, run).clone() for name, run in (("base", base), ("donor", donor)))
        check_runs(model, base, donor)
        plan = _plan(model, tuple(cells), metric, base, method)
        donor_run = recorded(model, plan.trunk, donor, plan.points, check=True)
        parts = [_estimate(model, plan, base[rows], donor_run.of(rows)) for rows in _rows(plan, base, memory)]
        effects, lows = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))
        high = together(metric, _read(plan, donor_run.states[-1][:, -plan.n_read :])).cpu()
    return FirstOrder(plan.cells, effects, lows, high)


def _plan(
    model: PreTrainedModel, cells: tuple[Cell, ...], metric: Metric, base: Tensor, method: EstimateMethod
) -> _Plan:
    _check_estimable(cells)
    if metric.kind == "rank":
        raise InputError("a rank has no derivative, so there are no first-order estimates of it; give another metric")
    n_tokens = base.shape[1]
    trunk = trunk_of(model, n_tokens)
    n_read = check_metrics({"metric": metric}, trunk.n_logits, n_tokens)
    n_neurons = neurons_of(trunk.anatomy, cells)
    check_cells(cells, n_tokens, len(trunk.layers), text_config(model).num_attention_heads, n_neurons)
    points = frozenset(cast(Point, cell.site) for cell in cells if cell.site != "resid_post")
    back = with_rules(trunk, trunk.enter(base[:1])) if method == RELP else trunk
    return _Plan(trunk, back, cells, _routes(cells, len(trunk.layers)), metric, n_read, points, max(n_neurons))


def _check_estimable(cells: Iterable[Cell]) -> None:
    for index, cell in enumerate(cells):
        one_state = cell.site == "resid_post" and 0 <= cell.start == cell.stop - 1
        one_half = cell.site in ("attn_out", "mlp_out") and not cell.pins
        one_unit = cell.site in UNITS and cell.start == cell.stop - 1 and not cell.pins
        if not (one_state or one_half or one_unit):
            raise InputError(
                f"cells[{index}]: this cell has no first-order estimate; supported are 'resid_post' of one layer from "
                "0 on, and without pins 'attn_out', 'mlp_out', and heads and neurons of one layer"
            )


def _routes(cells: tuple[Cell, ...], n_layers: int) -> tuple[Route, ...]:
    """Return the route of each cell; cells that sever the same modules up to the same layer share one."""
    severed, bottoms = [], dict[tuple[frozenset[Point], int], int]()
    for cell in cells:
        severed.append(_severs(cell.site, cell.pins, n_layers if cell.site == "resid_post" else cell.stop))
        bottoms[severed[-1]] = min(cell.start, bottoms.get(severed[-1], cell.start))
    routes = {(points, top): Route(points, bottom, top) for (points, top), bottom in bottoms.items()}
    return tuple(routes[own] for own in severed)


@cache
def _severs(site: CellSite, pins: tuple[Pin, ...], top: int) -> tuple[frozenset[Point], int]:
    """Return which modules the cells of a site sever, and up to which layer; for ``resid_post``, these are its pins.

    Before the restored layer the values are the base's anyway, so pins of all layers equal those of later layers.
    Computed once for many cells.
    """
    return frozenset([pin.site for pin in pins] if site == "resid_post" else [cast(Point, site)]), top


def _rows(plan: _Plan, base: Tensor, memory: int | None) -> Iterator[slice]:
    """Yield slices of samples that fit into memory together."""
    layers, n_tokens, width = plan.trunk.layers, base.shape[1], plan.trunk.anatomy.width
    points = sum(plan.n_neurons if point == "neurons" else width for point in plan.points) if plan.has_rules else 0
    # The effects of neurons are kept in float64.
    effects = plan.n_neurons * 8 // base.element_size()
    kept = len(layers) * (width + points + effects + 2 * layers[0].n_key_heads * layers[0].head_width)
    # A layer's graph holds about 40 states per token, mostly the MLP's neurons, and 8 copies of the attention scores.
    graph = (40 + len(set(plan.routes))) * width + 16 * layers[0].n_heads * n_tokens
    count = max(1, usable_memory(memory, base.device) // (n_tokens * (kept + graph) * base.element_size()))
    for start in range(0, len(base), count):
        yield slice(start, start + count)


def _estimate(model: PreTrainedModel, plan: _Plan, embeddings: Tensor, donor: RecordedRun) -> tuple[Tensor, Tensor]:
    """Return the estimated effects, [cells, S], and the metric, [S], for some base runs, [S, T, width]."""
    base = recorded(model, plan.trunk, embeddings, plan.points if plan.has_rules else ())
    parts, last = _from_the_end(plan, base)
    value = together(plan.metric, parts)
    # d p = p d log p
    slope = value if plan.metric.kind == "probability" else torch.ones_like(value)
    unlike = first_difference(base.states[0], donor.states[0])
    # Restoring a token before it changes nothing, so nothing is computed there, and the effects are exactly 0.
    terms = _terms(plan, base, donor, last[:, unlike:]) if unlike < last.shape[1] else {}
    effects = torch.zeros(len(plan.cells), len(embeddings), dtype=torch.float64)
    # Many cells differ only by token and unit: those of neurons are too many to be added one by one.
    for (route, site, start, stop), of_place in _by_place(plan).items():
        cells = [index for index in of_place if plan.cells[index].token >= unlike]
        if not cells:
            continue
        tokens = [plan.cells[index].token - unlike for index in cells]
        units = [plan.cells[index].unit for index in cells]
        for layer in range(start, stop):
            term = terms[route, site, layer]
            effects[cells] += (term[:, tokens, units] if site in UNITS else term[:, tokens]).T
    return effects * slope.cpu(), value.cpu()


def _by_place(plan: _Plan) -> dict[tuple[Route, CellSite, int, int], list[int]]:
    """Return the indices of the cells by what does not depend on token and unit: route, site and layers."""
    groups: dict[tuple[Route, CellSite, int, int], list[int]] = {}
    for index, (cell, route) in enumerate(zip(plan.cells, plan.routes, strict=True)):
        groups.setdefault((route, cell.site, cell.start, cell.stop), []).append(index)
    return groups


def _from_the_end(plan: _Plan, run: RecordedRun) -> tuple[Tensor, Tensor]:
    """Return each position's contribution to the metric, [S, K], and the derivative at the last states, [S, T, D]."""
    last = torch.zeros_like(run.states[-1])
    states = run.states[-1][:, -plan.n_read :].detach().requires_grad_()
    with grad_mode(True):
        parts = read((plan.metric,), plan.back.logits(states))[0]
        (last[:, -plan.n_read :],) = torch.autograd.grad(parts.sum(), states)
    return parts.detach(), last


def _read(plan: _Plan, states: Tensor) -> Tensor:
    """Return each position's contribution to the metric, [S, K], from the last layer's outputs, [S, K, D]."""
    return read((plan.metric,), plan.trunk.logits(states))[0]


def _terms(
    plan: _Plan, base: RecordedRun, donor: RecordedRun, last: Tensor
) -> dict[tuple[Route, CellSite, int], Tensor]:
    """Return the estimated effects of restoring a site at the last N tokens, by route, site and layer.

    [S, N], or [S, N, units] for a site with units; float64 on the CPU. ``last`` is the derivative at the last states of
    these tokens, [S, N, D].
    """
    terms, of_tokens = {}, slice(base.states[-1].shape[1] - last.shape[1], None)
    wanted = {(route, cell.site) for route, cell in zip(plan.routes, plan.cells, strict=True)}
    for at in derivatives(plan.back.layers, base, last, set(plan.routes)):
        for route, site in wanted:
            if route not in at.outputs:
                continue
            if site == "resid_post":
                there, here = (run.states[at.layer + 1][:, of_tokens] for run in (donor, base))
                slope = at.outputs[route]
            else:
                point = cast(Point, site)  # the estimable sites besides resid_post are points
                there = donor.points[point][at.layer][:, of_tokens]
                here = base.points[point][at.layer][:, of_tokens] if plan.has_rules else at.values[point]
                slope = at.points[route, point]
            units = {"heads": plan.trunk.layers[0].n_heads, "neurons": slope.shape[-1]}.get(site, 1)
            term = _along(there, here, slope, units)
            terms[route, site, at.layer] = term if site in UNITS else term[..., 0]
    # Moved at the end: each copy waits for what the device still computes.
    return {place: term.cpu() for place, term in terms.items()}


def _along(there: Tensor, here: Tensor, slope: Tensor, units: int) -> Tensor:
    """Return the first-order change from ``here`` to ``there``, [S, T, D], in each of U units, [S, T, U] float64."""
    there, here, slope = (in_float64(part.to(here.device)) for part in (there, here, slope))
    return ((there - here) * slope).unflatten(-1, (units, -1)).sum(dim=-1)
