"""Exact causal traces: every cell is run by the sweep engine."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import text_config
from interpret.sweep import Cell, Metric, run_sweep
from interpret.tracing.cell_values import values_by_mediator
from interpret.tracing.inputs import TraceInputs, TraceSettings
from interpret.tracing.mediators import mediator_named
from interpret.tracing.result import TraceResult, trace_result


def trace_exactly(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: TraceInputs,
    mediators: Sequence[str],
    settings: TraceSettings,
) -> list[dict[str, TraceResult]]:
    """Run all cells of some mediators; return the traces of each metric of the inputs, all read off the same runs.

    Raises:
        UnsupportedModelError: if the model is not of a supported family, or does not compute as its family does.
    """
    cells = cells_of(model, mediators, inputs, settings.window)
    found = values_by_mediator(inputs, cells, partial(run_exactly, model, inputs, settings))
    return [
        {name: trace_result(tokenizer, inputs, name, of_one, settings.window, metric) for name, of_one in found.items()}
        for metric in range(len(inputs.metrics))
    ]


def cells_of(
    model: PreTrainedModel, mediators: Sequence[str], inputs: TraceInputs, window: int
) -> dict[str, list[Cell]]:
    """Return the cells of each mediator, ordered by token and layer."""
    n_tokens, n_layers = len(inputs.tokens.ids), text_config(model).num_hidden_layers
    return {name: mediator_named(name).cells(n_tokens, n_layers, window, inputs.span) for name in mediators}


def run_exactly(
    model: PreTrainedModel,
    inputs: TraceInputs,
    settings: TraceSettings,
    base: Tensor,
    donor: Tensor,
    cells: Sequence[Cell],
) -> tuple[Tensor, Tensor, Tensor]:
    """Run every cell; a ``RunCells`` if model, inputs and settings are bound."""
    metrics: dict[str, Metric] = {metric.kind: metric for metric in inputs.metrics}
    found = run_sweep(model, base, donor, cells, metrics, memory=settings.memory)
    of_cells, of_base, of_donor = (
        torch.stack([of_run[kind] for kind in metrics]) for of_run in (found.values, found.base, found.donor)
    )
    return of_cells, of_base, of_donor
