"""Trace the facts of a data set, and return the traces as rows of a table.

Each fact is traced separately (``calls``). The facts share the size of the noise, which by default is set by the
subjects of all facts, as in ROME. ``runs`` writes the rows, ``TraceCell`` records, into a run folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.errors import InputError
from interpret.facts.files import Fact
from interpret.finite import NOTHING_FINITE, counted_once, warn
from interpret.records import EXACT, TraceCell, TraceMethod
from interpret.sweep.metrics import Kind
from interpret.tracing.calls import trace_by_metric
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.mediators import DEFAULT_MEDIATORS
from interpret.tracing.metrics import DIFFERENCE
from interpret.tracing.noise import embedding_sigma, parse_noise
from interpret.tracing.result import TraceResult, cells_not_finite, trace_cells
from interpret.tracing.units import UnitSite, UnitTrace, trace_units
from interpret.work.progress import streamed


@unwrapping
def trace_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    settings: TraceSettings | None = None,
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    method: TraceMethod = EXACT,
    metrics: Sequence[Kind] | None = None,
    progress: bool = True,
) -> Iterator[TraceCell]:
    """Trace facts, and yield one row per fact, mediator, metric, token and layer, in that order.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        facts: facts that the model knows, as found by ``known``; their attributes are the answers.
        settings: how prompts are corrupted and what is read; None for the defaults. The size of ``s`` noise is set by
            the subjects of all ``facts``, unless ``reference_texts`` is given.
        mediators: names of mediators, as in ``trace_mediators``.
        method: ``exact``, ``approximate``, ``relp`` or ``screened``, as in ``trace_mediators``. The column ``method``
            tells exact cells from estimates.
        metrics: what is read, see ``trace_by_metric``; None for the metric of the settings.
        progress: show a progress bar of the facts while rows are taken, in a terminal or a notebook.

    Yields:
        One ``TraceCell`` per cell.

    Raises:
        InputError: if an argument is invalid, or a fact cannot be traced; the message names the fact.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> rows = list(interpret.tracing.trace_facts(model, tokenizer, facts))  # doctest: +SKIP
    """
    sized = sized_for(model, tokenizer, facts, settings or TraceSettings())
    for fact in streamed("Tracing", facts, len(facts), shown=progress):
        try:
            results = trace_fact(model, tokenizer, fact, sized, mediators, method, metrics)
        except InputError as error:
            raise InputError(f"fact {fact.name!r}: {error}") from None
        warn(cells_not_finite([result.indirect_effects for result in results]))
        for result in results:
            yield from trace_cells(fact, result)


def trace_fact_units(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fact: Fact, settings: TraceSettings, site: str
) -> UnitTrace:
    """Trace single heads or neurons of one fact, at the last token of the subject and of the prompt.

    Raises:
        InputError: if it cannot be traced, or if no effect is finite.
        UnsupportedModelError: if the layers of the model cannot be run part by part.
    """
    with counted_once():
        found = trace_units(
            model,
            tokenizer,
            fact.prompt,
            fact.subject,
            fact.attribute,
            site=cast(UnitSite, site),
            settings=settings,
            occurrence=fact.occurrence,
            foil=fact.foil if settings.metric == DIFFERENCE else None,
            progress=False,
        )
    if not np.isfinite(found.effects[found.exact]).any():
        raise InputError(f"probabilities of the answer {NOTHING_FINITE}")
    return found


def sized_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], settings: TraceSettings
) -> TraceSettings:
    """Return settings with the noise size of a data set: ``s3`` becomes 3 times the standard deviation, as a number.

    The standard deviation of the embeddings of all subjects is computed once here, not again for each fact. Settings
    with reference texts, or with other noise than ``s``, are returned unchanged.

    Raises:
        InputError: if the noise specification is invalid.
    """
    if settings.reference_texts is not None or not isinstance(settings.noise, str):
        return settings
    spec = parse_noise(settings.noise)
    if spec.code != "s":
        return settings
    sigma = embedding_sigma(model, tokenizer, [fact.subject for fact in facts])
    return replace(settings, noise=spec.size * sigma)


def trace_fact(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    settings: TraceSettings,
    mediators: Sequence[str],
    method: TraceMethod = EXACT,
    metrics: Sequence[Kind] | None = None,
) -> list[TraceResult]:
    """Trace one fact, and return its traces, ordered by mediator, then by metric.

    Raises:
        InputError: if it cannot be traced, or if no effect is finite.
        UnsupportedModelError: if the model is not of a supported family.
    """
    read = [settings.metric] if metrics is None else metrics
    with counted_once():
        found = trace_by_metric(
            model,
            tokenizer,
            fact.prompt,
            fact.subject,
            fact.attribute,
            metrics=read,
            mediators=mediators,
            settings=settings,
            occurrence=fact.occurrence,
            foil=fact.foil if DIFFERENCE in read else None,
            method=method,
            progress=False,
        )
    results = [traces[name] for name in dict.fromkeys(mediators) for traces in found.values()]
    if not any(np.isfinite(result.indirect_effects).any() for result in results):
        raise InputError(f"probabilities of the answer {NOTHING_FINITE}")
    return results
