"""The first-order estimate of a sweep: all its cells from a few backward passes, none of them exact.

Attribution patching (Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Syed, Rager & Conmy
2023, arXiv:2310.10348). With v the value a cell restores and m the metric, the effect of the cell is taken to be

    (v of the donor - v of the base) . dm/dv at the base run,

which is exactly the slope, at 0, of what ``sweep`` finds when a share of the difference is restored. The derivative
is the cell's own. What it pins is constant at its token; and where a window of layers is restored, each layer's
output is overwritten, and so does not depend on those restored before it. ``backward`` says how that is had for all
tokens at once. Letters are those of ``layers``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.device import in_float64
from interpret.engine.layers import Point
from interpret.engine.recording import RecordedRun, record_run
from interpret.engine.trunk import Trunk, check_trunk, trunk_of
from interpret.errors import InputError
from interpret.sweep.backward import Route, derivatives
from interpret.sweep.base_and_donor import check_runs, embedded, first_difference, usable_memory
from interpret.sweep.cells import Cell, CellSite, check_cells
from interpret.sweep.metrics import Metric, check_metrics, read, together


@dataclass(frozen=True)
class FirstOrder:
    """The estimated effects of every cell."""

    cells: tuple[Cell, ...]
    effects: Tensor
    """[cells, S], float64 on the CPU: by how much each cell changes the metric, estimated."""
    base: Tensor
    """[S], the metric of the base runs, exact."""
    donor: Tensor
    """[S], or [1] where there is one donor for all; exact."""


@dataclass(frozen=True)
class _Plan:
    """What all samples share."""

    trunk: Trunk
    cells: tuple[Cell, ...]
    routes: tuple[Route, ...]
    """Of each cell, the way its derivative takes."""
    metric: Metric
    n_read: int
    """How many positions, the last ones, the metric reads."""
    points: frozenset[Point]
    """What is recorded of both runs beside the states."""


def first_order(
    model: PreTrainedModel,
    base: Tensor,
    donor: Tensor,
    cells: Sequence[Cell],
    metric: Metric,
    *,
    memory: int | None = None,
) -> FirstOrder:
    """Estimate the effect of every cell to the first order.

    Costs one forward pass of the donor, and two forward passes and a backward one of the base runs. Each kind of
    severing adds a forward and a backward pass, and windows of w layers a forward and w backward passes, but these stay
    within each token and leave out half of every layer. No derivative by a weight is taken and no ``.grad``
    written. All is computed in the model's dtype: in half precision, and with quantised weights, derivatives are as
    coarse as the model is. It is the logarithm of a probability that is derived, so that small ones do not vanish.

    Args:
        model: a causal LM of a known family, in evaluation mode.
        base: the runs the cells would patch: [S, T] token ids, or word embeddings, [S, T, width].
        donor: the runs the restored values come from, in the same forms; S rows, or one for all.
        cells: what would be restored: ``hidden`` of one layer from 0 on, with or without pins, or ``attention`` or
            ``mlp`` of any number of layers, without.
        metric: what is read.
        memory: bytes that may be used beside the donor's run, see ``sweep``; samples that do not fit together are
            worked on one after the other.

    Raises:
        InputError: if the runs, a cell or the metric are wrong.
        UnsupportedModelError: if the model is of no known family, or does not compute as its family does.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2)).eval()
    >>> base, donor = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 2, 4]])
    >>> first_order(model, base, donor, [Cell("resid_post", 1, 0, 1)], Metric("logit", (7,))).effects.shape
    torch.Size([1, 1])
    """
    with torch.inference_mode(False), torch.no_grad():
        # Tensors made in inference mode never take part in derivatives; copies made outside of it do.
        base, donor = (embedded(model, name, run).clone() for name, run in (("base", base), ("donor", donor)))
        check_runs(model, base, donor)
        plan = _plan(model, tuple(cells), metric, base.shape[1])
        donor_run = record_run(plan.trunk.layers, plan.trunk.enter(donor), plan.points)
        check_trunk(model, plan.trunk, donor[:1], donor_run.states[-1][:1])
        parts = [_estimate(plan, base[rows], donor_run.of(rows)) for rows in _rows(plan, base, memory)]
        effects, lows = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))
        high = together(metric, _read(plan, donor_run.states[-1][:, -plan.n_read :])).cpu()
    return FirstOrder(plan.cells, effects, lows, high)


def _plan(model: PreTrainedModel, cells: tuple[Cell, ...], metric: Metric, n_tokens: int) -> _Plan:
    _check_estimable(cells)
    trunk = trunk_of(model, n_tokens)
    n_read = check_metrics({"metric": metric}, trunk.n_logits, n_tokens)
    check_cells(cells, n_tokens, len(trunk.layers), 0, 0)
    points = frozenset(cell.site for cell in cells if cell.site != "resid_post")
    return _Plan(trunk, cells, _routes(cells, len(trunk.layers)), metric, n_read, points)


def _check_estimable(cells: Iterable[Cell]) -> None:
    for index, cell in enumerate(cells):
        one_state = cell.site == "resid_post" and 0 <= cell.start == cell.stop - 1
        one_half = cell.site in ("attn_out", "mlp_out") and not cell.pins
        if not (one_state or one_half):
            raise InputError(
                f"cells[{index}]: there is no first-order estimate of such a cell; there is of 'hidden' of one layer "
                "from 0 on, and of 'attention' and 'mlp' without pins"
            )


def _routes(cells: tuple[Cell, ...], n_layers: int) -> tuple[Route, ...]:
    """Return the route of each cell; cells that sever the same up to the same layer share one."""

    def severs(cell: Cell) -> tuple[frozenset[Point], int]:
        if cell.site == "resid_post":
            # Before the restored layer the base's values stand there anyhow, so pins of all layers are later pins.
            return frozenset(pin.site for pin in cell.pins), n_layers
        return frozenset([cell.site]), cell.stop

    bottoms: dict[tuple[frozenset[Point], int], int] = {}
    for cell in cells:
        bottoms[severs(cell)] = min(cell.start, bottoms.get(severs(cell), cell.start))
    return tuple(Route(severed, bottoms[severed, top], top) for severed, top in map(severs, cells))


def _rows(plan: _Plan, base: Tensor, memory: int | None) -> Iterator[slice]:
    """Return slices of the samples that fit into memory together."""
    layers, n_tokens, width = plan.trunk.layers, base.shape[1], plan.trunk.anatomy.width
    kept = len(layers) * ((1 + len(plan.points)) * width + 2 * layers[0].n_key_heads * layers[0].head_width)
    # A layer's graph holds about forty states a token (the MLP's neurons weigh most), and eight copies of the scores.
    graph = (40 + len(set(plan.routes))) * width + 16 * layers[0].n_heads * n_tokens
    count = max(1, usable_memory(memory, base.device) // (n_tokens * (kept + graph) * base.element_size()))
    for start in range(0, len(base), count):
        yield slice(start, start + count)


def _estimate(plan: _Plan, embeddings: Tensor, donor: RecordedRun) -> tuple[Tensor, Tensor]:
    """Return the estimates, [cells, S], and the metric, [S], of some base runs, [S, T, width]."""
    trunk = plan.trunk
    base = record_run(trunk.layers, trunk.enter(embeddings), plan.points)
    parts, last = _from_the_end(plan, base)
    value = together(plan.metric, parts)
    # d p = p d log p
    slope = value if plan.metric.kind == "probability" else torch.ones_like(value)
    terms = _terms(plan, base, donor, last)
    unlike = first_difference(base, donor)
    effects = torch.zeros(len(plan.cells), len(embeddings), dtype=torch.float64)
    for effect, cell, route in zip(effects, plan.cells, plan.routes, strict=True):
        # Where the runs do not differ the estimate is 0, and not what rounding makes of it, which would have a rank.
        if cell.token >= unlike:
            for layer in range(cell.start, cell.stop):
                effect += terms[route, cell.site, layer][:, cell.token]
    return effects * slope.cpu(), value.cpu()


def _from_the_end(plan: _Plan, run: RecordedRun) -> tuple[Tensor, Tensor]:
    """Return what each position read adds to the metric, [S, K], and the derivative at the last states, [S, T, D]."""
    last = torch.zeros_like(run.states[-1])
    states = run.states[-1][:, -plan.n_read :].detach().requires_grad_()
    with torch.enable_grad():
        parts = _read(plan, states)
        (last[:, -plan.n_read :],) = torch.autograd.grad(parts.sum(), states)
    return parts.detach(), last


def _read(plan: _Plan, states: Tensor) -> Tensor:
    """Return what the last states, [S, K, D], add to the metric, [S, K]."""
    return read((plan.metric,), plan.trunk.logits(states), plan.n_read)[0]


def _terms(
    plan: _Plan, base: RecordedRun, donor: RecordedRun, last: Tensor
) -> dict[tuple[Route, CellSite, int], Tensor]:
    """Return what restoring a site adds, [S, T] float64 on the CPU, by route, site and layer."""
    terms = {}
    wanted = {(route, cell.site) for route, cell in zip(plan.routes, plan.cells, strict=True)}
    for at in derivatives(plan.trunk.layers, base, last, set(plan.routes)):
        for route, site in wanted:
            if route not in at.outputs:
                continue
            if site == "resid_post":
                there, here = (run.states[at.layer + 1] for run in (donor, base))
                slope = at.outputs[route]
            else:
                there, here = (run.points[site][at.layer] for run in (donor, base))
                slope = at.points[route, site]
            terms[route, site, at.layer] = _along(there, here, slope).cpu()
    return terms


def _along(there: Tensor, here: Tensor, slope: Tensor) -> Tensor:
    """Return how far a slope, [S, T, D], leads up from here to there, [S, T] float64."""
    there, here, slope = (in_float64(part.to(here.device)) for part in (there, here, slope))
    return ((there - here) * slope).sum(dim=-1)
