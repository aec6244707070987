"""Causal tracing of one prompt: which hidden states, restored in a corrupted run, recover the answer.

Meng et al., "Locating and Editing Factual Associations in GPT" (ROME, 2022), section 2. There are three kinds of runs:
clean; corrupted, with noise on the embeddings of the subject; and corrupted with one state restored. A score is the
probability of the answer, averaged over noise samples.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.errors import InputError, unknown
from interpret.finite import warn
from interpret.records import EXACT, SCREENED, TRACE_METHODS, TraceMethod
from interpret.sweep.metrics import Kind
from interpret.tracing.approximate import Screening, check_amount, estimate_traces, screen_traces
from interpret.tracing.exact import trace_exactly
from interpret.tracing.inputs import AnswerTokens, TraceInputs, TraceSettings, trace_inputs
from interpret.tracing.mediators import DEFAULT_MEDIATORS, check_estimable, check_mediators
from interpret.tracing.metrics import check_trace_metrics
from interpret.tracing.result import TracedMediators, TraceResult, cells_not_finite
from interpret.work.progress import showing


@unwrapping
def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | Sequence[int] | None = None,
    *,
    mediator: str = "hidden",
    metric: Kind = "probability",
    foil: str | Sequence[int] | None = None,
    noise: str | float | ArrayLike = "s3",
    samples: int = 10,
    seed: int = 0,
    replace: bool = False,
    window: int = 10,
    answer_tokens: AnswerTokens = "first",
    occurrence: int | None = None,
    counterfactual: str | None = None,
    reference_texts: Sequence[str] | None = None,
    chat_template: str | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> TraceResult:
    """Trace one prompt with one mediator.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        prompt: the prompt.
        subject: the part of the prompt whose embeddings are corrupted.
        answer: the expected continuation, as words or as token ids; by default the most likely next token of the clean
            run.
        mediator: what is restored at each token and layer: ``hidden``, the layer's output; ``attn_severed`` and
            ``mlp_severed``, the same with the token's attention or MLP outputs held at their corrupted values in
            all later layers; ``attn_window`` and ``mlp_window``, attention or MLP outputs of ``window`` layers;
            ``attn_knockout``, the token's attention to the subject, knocked out of the clean run in ``window`` layers
            (to other tokens: ``attn_knockout:relation``, ``:itself``, ``:last`` or ``:0,3``, see ``knockout``); or a
            registered mediator of your own.
        metric: what is read: ``probability``, ``log_probability``, ``logit``, ``logit_difference`` or ``rank``.
        foil: a wrong answer, as words or token ids, for ``logit_difference``.
        noise: a noise specification, or the noise itself, see ``TraceSettings``.
        samples: number of noise samples.
        seed: random seed of the noise.
        replace: replace the embeddings by the noise instead of adding it.
        window: number of layers changed together by ``attn_window``, ``mlp_window`` and ``attn_knockout``. The window
            of layer l starts at layer ``l - window // 2``; layers outside the model are left out, as in ROME.
        answer_tokens: ``first`` or ``whole``: read the first token of the answer, or the whole answer.
        occurrence: index of the occurrence of the subject, from 0; required if there are several.
        counterfactual: another prompt with the same number of tokens; its run is the corrupted run, without noise.
        reference_texts: texts whose embeddings set the size of the noise, see ``TraceSettings``.
        chat_template: template that makes the prompt the user's message of a chat, see ``TraceSettings``.
        memory: bytes that the sweep may use; None to choose from the device's memory.
        progress: show a progress bar while it runs, in a terminal or a notebook.

    Returns:
        The trace. Cells that are not finite are marked by their value, and counted in a warning.

    Raises:
        InputError: if an argument is invalid or the arguments do not fit together, or if no answer is given and the
            model's logits are not finite.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> result = trace(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> result.indirect_effects.argmax()  # doctest: +SKIP
    """
    texts = None if reference_texts is None else tuple(reference_texts)
    settings = TraceSettings(noise, samples, seed, replace, window, answer_tokens, metric, texts, chat_template, memory)
    results = trace_mediators(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        mediators=[mediator],
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
        foil=foil,
        progress=progress,
    )
    return results[mediator]


@unwrapping
@torch.no_grad()
def trace_mediators(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | Sequence[int] | None = None,
    *,
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
    foil: str | Sequence[int] | None = None,
    method: TraceMethod = "exact",
    progress: bool = True,
) -> TracedMediators:
    """Trace one prompt with several mediators, which share the clean and the corrupted runs.

    Args:
        model: as in ``trace``.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        mediators: names of mediators.
        settings: how the prompt is corrupted and what is read; None for the defaults.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.
        foil: as in ``trace``.
        method: ``exact``: every cell is run. ``approximate``: every cell is estimated to first order from derivatives
            at the corrupted runs (attribution patching); ``low`` and ``high`` are exact. ``relp``: the same, with
            relevance in place of derivatives (RelP). ``screened``: of the cells from the subject on, the 10% with the
            largest estimates are run, see ``screen``. ``TraceResult.exact`` marks the exact cells.
        progress: show a progress bar while it runs, in a terminal or a notebook.

    Returns:
        The trace of each mediator, by its name, in the order of ``mediators``. Cells that are not finite are marked by
        their value, and counted in a warning.

    Raises:
        InputError: as ``trace`` raises; also if the method is unknown.
        UnsupportedModelError: as ``trace`` raises.
    """
    settings = settings or TraceSettings()
    found = trace_by_metric(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        metrics=[settings.metric],
        mediators=mediators,
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
        foil=foil,
        method=method,
        progress=progress,
    )
    return found[settings.metric]


@unwrapping
@torch.no_grad()
def trace_by_metric(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | Sequence[int] | None = None,
    *,
    metrics: Sequence[Kind] = ("probability", "log_probability", "logit"),
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
    foil: str | Sequence[int] | None = None,
    method: TraceMethod = "exact",
    progress: bool = True,
) -> dict[Kind, TracedMediators]:
    """Trace one prompt by several metrics; exact traces read all of them off the same runs.

    Args:
        model: as in ``trace``.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        metrics: what is read, as ``metric`` in ``trace``.
        mediators: names of mediators.
        settings: how the prompt is corrupted; None for the defaults. Its metric is not used.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.
        foil: as in ``trace``.
        method: as in ``trace_mediators``; estimates are made metric by metric.
        progress: as in ``trace``.

    Returns:
        The traces of each metric, in the order of ``metrics``, as ``trace_mediators`` returns them.

    Raises:
        InputError: as ``trace_mediators`` raises; also if no metric is given, or one twice.
        UnsupportedModelError: as ``trace`` raises.

    Example:
        >>> found = trace_by_metric(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> found["logit"]["hidden"].indirect_effects  # doctest: +SKIP
    """
    settings = settings or TraceSettings()
    check_mediators(mediators)
    check_trace_metrics(metrics)
    if method not in TRACE_METHODS:
        raise InputError(unknown("method", method, TRACE_METHODS))
    if method != EXACT:
        for metric in metrics:
            check_estimable(mediators, metric)
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
        metrics=metrics,
    )
    with showing("Tracing", shown=progress):
        results = _traces(model, tokenizer, inputs, mediators, settings, method)
    warn(cells_not_finite([one.indirect_effects for of_metric in results for one in of_metric.values()]))
    return {metric.kind: TracedMediators(one) for metric, one in zip(inputs.metrics, results, strict=True)}


def _traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: TraceInputs,
    mediators: Sequence[str],
    settings: TraceSettings,
    method: TraceMethod,
) -> list[dict[str, TraceResult]]:
    """Return the traces of each metric of the inputs."""
    if method == EXACT:
        return trace_exactly(model, tokenizer, inputs, mediators, settings)
    each = [replace(inputs, metrics=(metric,)) for metric in inputs.metrics]  # a metric has its own derivatives
    if method != SCREENED:
        return [estimate_traces(model, tokenizer, one, mediators, settings, method) for one in each]
    screened = [screen_traces(model, tokenizer, one, mediators, settings) for one in each]
    return [{name: screening.result for name, screening in of_metric.items()} for of_metric in screened]


@unwrapping
def screen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | Sequence[int] | None = None,
    *,
    share: float = 0.1,
    top: int | None = None,
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
    foil: str | Sequence[int] | None = None,
    progress: bool = True,
) -> dict[str, Screening]:
    """Estimate the traces of one prompt, and run the cells with the largest estimated effects.

    Args:
        model: as in ``trace``; no gradients remain on it.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        share: share of each mediator's cells to run, above 0 and at most 1; the number of cells is rounded up. The
            cells with the largest absolute estimated indirect effect are chosen. Cells before the subject (with a
            counterfactual, before the first other token) do not count: they have no effect, which is exact.
        top: number of cells of each mediator to run, instead of ``share``.
        mediators: names of mediators.
        settings: how the prompt is corrupted and what is read; None for the defaults.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.
        foil: as in ``trace``.
        progress: as in ``trace``.

    Returns:
        The screened trace of each mediator, by its name, in the order of ``mediators``.

    Raises:
        InputError: as ``trace`` raises; also if ``top`` is below 1, or ``share`` is not above 0 and at most 1.
        UnsupportedModelError: as ``trace`` raises.

    Example:
        >>> found = screen(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> found["hidden"].result.exact.mean()  # doctest: +SKIP
    """
    settings = settings or TraceSettings()
    check_estimable(mediators, settings.metric)
    check_amount(share, top)
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
    with showing("Tracing", shown=progress):
        found = screen_traces(model, tokenizer, inputs, mediators, settings, share=share, top=top)
    warn(cells_not_finite([screening.result.indirect_effects for screening in found.values()]))
    return found
