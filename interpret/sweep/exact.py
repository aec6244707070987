"""Many patched runs of one base run, each with exactly the result of a full forward pass with that patch.

Restoring a value at token t of layer l changes nothing before layer l and nothing at tokens before t. So all cells of
a token (a column) run together: at each layer the cells that start there join, only the tokens from t on are computed,
with the base run's keys and values for the earlier ones, and the last layer computes only the positions that a metric
reads. Cells at tokens before the first difference of the two runs are not run. Families that are described without
their parts use ``whole_passes``. Letters are those of ``engine.layers``.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of, check_logits, has_neurons, text_config, unwrapping
from interpret.device import index_on, is_out_of_memory
from interpret.engine.layers import Point
from interpret.engine.recording import RecordedRun
from interpret.engine.trunk import Trunk, exit_of, trunk_of
from interpret.sweep.base_and_donor import (
    check_mixers,
    check_runs,
    embedded,
    first_difference,
    has_effect,
    neurons_of,
    usable_memory,
)
from interpret.sweep.cells import ATTENTION, Cell, CellSite, Knockout, Pin, check_cells
from interpret.sweep.columns import Column, run_column
from interpret.sweep.kept_runs import recorded
from interpret.sweep.metrics import Metric, check_metrics, read, together
from interpret.sweep.whole_passes import whole_passes
from interpret.work.progress import counted

CPU_CHUNK = 512
"""Tokens computed at once on a CPU: enough for fast matrix products, few enough for the CPU's caches and for memory
that is reused (``reuse_freed_memory``)."""
HEAD_CHUNK = 64
"""Positions per call of the unembedding on a CPU, because logits over the vocabulary are large."""
GPU_LOGITS = 2**26
"""Logits per call of the unembedding on a GPU: 256 MiB in float32."""


@dataclass(frozen=True)
class SweepResult:
    """The metrics of every patched run."""

    cells: tuple[Cell, ...]
    values: Mapping[str, Tensor]
    """Name of a metric -> [cells, S], float64 on the CPU."""
    base: Mapping[str, Tensor]
    """Name of a metric -> [S], of the unpatched base runs."""
    donor: Mapping[str, Tensor]
    """Name of a metric -> [S], or [1] for a donor of one row."""
    layer_tokens: int
    """Number of tokens that passed through decoder layers, summed over the layers."""


@dataclass(frozen=True)
class _Plan:
    """What all columns of a sweep share."""

    trunk: Trunk
    metrics: Mapping[str, Metric]
    n_read: int
    """Number of final positions that the metrics read."""
    base: RecordedRun
    donor: RecordedRun


@dataclass(frozen=True)
class _Job:
    """Cells of a column and samples that are run at once."""

    column: Column
    samples: slice
    chunk: int
    """Maximum number of cells computed together."""

    def halves(self) -> "list[_Job]":
        """Return two jobs of half the cells, or of half the samples if there is one cell; [] if both are one."""
        column, samples = self.column, self.samples
        middle = len(column.cells) // 2
        if middle:
            return [
                replace(self, column=part, chunk=max(1, self.chunk // 2))
                for part in column.pieces(len(column.cells) - middle)
            ]
        middle = (samples.start + samples.stop) // 2
        if middle > samples.start:
            parts = (slice(samples.start, middle), slice(middle, samples.stop))
            return [replace(self, samples=part) for part in parts]
        return []


@unwrapping
@torch.no_grad()
def run_sweep(
    model: PreTrainedModel,
    base: Tensor,
    donor: Tensor,
    cells: Sequence[Cell],
    metrics: Mapping[str, Metric],
    *,
    memory: int | None = None,
) -> SweepResult:
    """Compute the metrics of every patched run in ``cells``.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        base: the runs to patch: S rows of T token ids, [S, T] int64, or of word embeddings, [S, T, width].
        donor: the runs whose values are restored, in the same forms; S rows, or one for all.
        cells: what to restore, and where.
        metrics: what to read at the last positions, by name.
        memory: bytes that may be used besides the two recorded runs; by default 1 GiB on a CPU and half of the free
            memory of a GPU. A batch that still does not fit is halved and retried.

    Returns:
        The metrics of every cell and sample.

    Raises:
        InputError: if the runs, a cell or a metric are invalid.
        UnsupportedModelError: if the model's family is not supported, if the model does not compute as its family
            does, if a cell is a head or neuron and the family is described without its parts, or if it is a
            ``mixer_out`` and all layers of the family have attention.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2)).eval()
    >>> base, donor = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 2, 4]])
    >>> found = run_sweep(model, base, donor, [Cell("resid_post", 2, 1, 2)], {"p": Metric("probability", (7,))})
    >>> torch.allclose(found.values["p"][0], found.donor["p"])
    True
    """
    base, donor = embedded(model, "base", base), embedded(model, "donor", donor)
    check_runs(model, base, donor)
    check_mixers(anatomy_of(model), cells)
    if anatomy_of(model).family.parts is None:
        return _by_whole_passes(model, base, donor, tuple(cells), metrics)
    trunk = trunk_of(model, base.shape[1])
    n_read = check_metrics(metrics, trunk.n_logits, base.shape[1])
    n_neurons = neurons_of(trunk.anatomy, cells)
    check_cells(cells, base.shape[1], len(trunk.layers), text_config(model).num_attention_heads, n_neurons)
    of_base, of_donor = _points(cells)
    base_run = recorded(model, trunk, base, of_base)
    donor_run = recorded(model, trunk, donor, of_donor, check=True)
    plan = _Plan(trunk, metrics, n_read, base_run, donor_run)
    return _result(plan, tuple(cells), _Limits.of(memory, base_run.states[0], text_config(model).num_attention_heads))


def _by_whole_passes(
    model: PreTrainedModel, base: Tensor, donor: Tensor, cells: tuple[Cell, ...], metrics: Mapping[str, Metric]
) -> SweepResult:
    """Compute a sweep for a model whose layers cannot be run part by part."""
    anatomy = anatomy_of(model)
    check_logits(model)
    warnings.warn(
        f"the family {anatomy.family.name!r} is described without its parts, so each cell takes a whole forward pass; "
        "this is slower and gives the same results",
        stacklevel=3,
    )
    n_samples, n_tokens = base.shape[:2]
    n_read = check_metrics(metrics, exit_of(model).n_logits, n_tokens)
    # The numbers of heads, and often of neurons, are unknown here; whole_passes refuses the cells of such units.
    known = all(has_neurons(anatomy, layer) for layer in range(len(anatomy.layers)))
    n_neurons = neurons_of(anatomy, cells) if known else [sys.maxsize] * len(anatomy.layers)
    check_cells(cells, n_tokens, len(anatomy.layers), sys.maxsize, n_neurons)
    own, given, values, n_run = whole_passes(model, base, donor, cells, tuple(metrics.values()), n_read)
    count = (n_samples * (n_run + 1) + len(donor)) * n_tokens * len(anatomy.layers)
    return SweepResult(cells, _named(metrics, values), _named(metrics, own), _named(metrics, given), count)


def _points(cells: Iterable[Cell]) -> tuple[set[Point], set[Point]]:
    """Return which points of the base's layers must be recorded, and which of the donor's."""
    base, donor = set(), set()
    for cell in cells:
        base |= {pin.site for pin in cell.pins}
        donor |= {cell.site} - {"resid_post", ATTENTION}
    return cast(set[Point], base), cast(set[Point], donor)


@dataclass(frozen=True)
class _Limits:
    """Limits on how much is computed at once."""

    tokens: int
    """Maximum number of tokens in one call of a layer."""
    kept: int
    """Maximum number of tokens whose states are kept between two layers."""

    @classmethod
    def of(cls, memory: int | None, start: Tensor, n_heads: int) -> "_Limits":
        """Divide the memory: half for the states between layers, half for what a layer allocates.

        Args:
            memory: bytes, or None for the default.
            start: [S, T, D], the input of the first layer.
            n_heads: number of attention heads.
        """
        on_gpu = start.device.type == "cuda"
        memory = usable_memory(memory, start.device)
        state = start.shape[2] * start.element_size()
        # A layer holds about 20 states per token, mostly the MLP's neurons, and 3 copies of the attention scores.
        work = 20 * state + 12 * n_heads * start.shape[1]
        tokens = max(1, memory // 2 // work)
        return cls(tokens if on_gpu else min(tokens, CPU_CHUNK), max(1, memory // 2 // (2 * state)))

    def jobs(self, column: Column, n_samples: int, n_tokens: int) -> Iterator[_Job]:
        """Split a column of N tokens into jobs that fit into memory."""
        samples = max(1, min(n_samples, self.tokens // n_tokens))
        cells = max(1, self.kept // (samples * n_tokens))
        chunk = max(1, self.tokens // (samples * n_tokens))
        for start in range(0, n_samples, samples):
            for part in column.pieces(cells):
                yield _Job(part, slice(start, min(start + samples, n_samples)), chunk)


def _result(plan: _Plan, cells: tuple[Cell, ...], limits: _Limits) -> SweepResult:
    """Run the cells that need it; the values of all others are those of the base run."""
    base, donor = (_read(plan, run.states[-1][:, -plan.n_read :]) for run in (plan.base, plan.donor))  # [metrics, S, K]
    n_samples, n_tokens = plan.base.states[0].shape[:2]
    values = base[:, None].repeat(1, len(cells), 1, 1)  # [metrics, cells, S, K]
    count = sum(len(run.states[0]) for run in (plan.base, plan.donor)) * n_tokens * len(plan.trunk.layers)
    unlike = first_difference(plan.base.states[0], plan.donor.states[0])
    for column in counted(_columns(cells, unlike, n_tokens - plan.n_read, len(plan.trunk.layers))):
        count += n_samples * column.layer_tokens(len(plan.trunk.layers), n_tokens, plan.n_read)
        for job in limits.jobs(column, n_samples, n_tokens - column.token):
            for done, parts in _run(plan, job):
                # Positions before the column's token keep the base's values.
                at = index_on(values.device, done.column.indices)
                values[:, at, done.samples, -parts.shape[-1] :] = parts
    named = [_named(plan.metrics, parts) for parts in (values, base, donor)]
    return SweepResult(cells, named[0], named[1], named[2], count)


def _named(metrics: Mapping[str, Metric], parts: Tensor) -> dict[str, Tensor]:
    return {name: together(metric, part).cpu() for (name, metric), part in zip(metrics.items(), parts, strict=True)}


def _columns(cells: tuple[Cell, ...], unlike: int, first_read: int, n_layers: int) -> list[Column]:
    """Group the cells that must be run into columns.

    Left out are cells without an effect, and cells that change the last layer's output at a token that no metric reads.
    """
    groups: dict[tuple[int, CellSite, tuple[Pin, ...], Knockout | None], list[int]] = {}
    for index, cell in enumerate(cells):
        if has_effect(cell, unlike) and (cell.start < n_layers - 1 or cell.token >= first_read):
            groups.setdefault((cell.token, cell.site, cell.pins, cell.knockout), []).append(index)
    ordered = (sorted(group, key=lambda index: cells[index].start) for group in groups.values())
    return [Column(tuple(cells[index] for index in group), tuple(group)) for group in ordered]


def _run(plan: _Plan, job: _Job) -> list[tuple[_Job, Tensor]]:
    """Return a job with its cells' contributions to the metrics, [metrics, C, S, M]; halve it if it does not fit."""
    try:
        return [(job, _run_whole(plan, job))]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not job.halves():
            raise
    # Outside the except block, in which the traceback would keep the tensors that did not fit.
    return [done for half in job.halves() for done in _run(plan, half)]


def _run_whole(plan: _Plan, job: _Job) -> Tensor:
    base, donor = plan.base.of(job.samples), plan.donor.of(job.samples)
    states = run_column(plan.trunk.layers, base, donor, job.column, n_read=plan.n_read, chunk=job.chunk)
    return torch.cat([_read(plan, x.flatten(0, 1)).unflatten(1, x.shape[:2]) for x in states], dim=1)


def _read(plan: _Plan, states: Tensor) -> Tensor:
    """Return each position's contribution to the metrics, [metrics, R, M], from last states, [R, M, D]."""
    positions = GPU_LOGITS // plan.trunk.n_logits if states.device.type == "cuda" else HEAD_CHUNK
    rows = max(1, positions // states.shape[1])
    parts = [read(tuple(plan.metrics.values()), plan.trunk.logits(some)) for some in states.split(rows)]
    return torch.cat(parts, dim=1)
