"""Causal tracing: which hidden states, restored in a corrupted run, bring the answer back.

Meng et al., "Locating and Editing Factual Associations in GPT" (ROME, 2022), section 2. Three kinds of runs: clean;
corrupted, with noise on the embeddings of the subject; and corrupted with restoration of one state. A score is the
mean over noise samples of the probability of the answer.
"""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError, unknown
from interpret.records import APPROXIMATE, SCREENED, TRACE_METHODS, TraceMethod
from interpret.tracing.approximate import Screening, check_amount, estimate_traces, screen_traces
from interpret.tracing.exact import trace_exactly
from interpret.tracing.inputs import Target, TraceSettings, trace_inputs
from interpret.tracing.mediators import DEFAULT_MEDIATORS, check_mediators
from interpret.tracing.result import TraceResult


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    mediator: str = "hidden",
    noise: str | float | ArrayLike = "s3",
    samples: int = 10,
    seed: int = 0,
    replace: bool = False,
    window: int = 10,
    target: Target = "first",
    occurrence: int | None = None,
    counterfactual: str | None = None,
    reference_texts: Sequence[str] | None = None,
    memory: int | None = None,
) -> TraceResult:
    """Trace one prompt by one mediator.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: its fast tokenizer.
        prompt: what the model reads, raw.
        subject: the part of the prompt whose embeddings are corrupted.
        answer: what is expected next; by default the token the clean run finds likeliest.
        mediator: what is restored at each token and layer: ``hidden``, the layer's output; ``attn_severed`` and
            ``mlp_severed``, the same with the token's attention or MLP outputs held at their corrupted values in
            all later layers; ``attn_window`` and ``mlp_window``, attention or MLP outputs of ``window`` layers.
        noise: see ``TraceSettings``, also for what is not told here.
        samples: how many draws of noise.
        seed: of the draws.
        replace: put the noise in place of the embeddings.
        window: how many layers the windows have: of layer l those from ``l - window // 2`` on, cut off at the model's
            first and last, as in ROME.
        target: ``first`` or ``whole``.
        occurrence: which of several occurrences of the subject, from 0.
        counterfactual: another prompt, of the same number of tokens, that takes the place of the noise.
        reference_texts: the texts that set the size of the noise.
        memory: bytes that may be used.

    Raises:
        InputError: if an argument is wrong or the arguments do not fit together.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> result = trace(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> result.indirect_effects.argmax()  # doctest: +SKIP
    """
    texts = None if reference_texts is None else tuple(reference_texts)
    settings = TraceSettings(noise, samples, seed, replace, window, target, texts, memory)
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
    )
    return results[mediator]


@torch.no_grad()
def trace_mediators(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
    method: TraceMethod = "exact",
) -> dict[str, TraceResult]:
    """Trace one prompt by several mediators, which share the clean and the corrupted runs.

    Args:
        model: as in ``trace``, like all that is not told here.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        mediators: which, in the order of the result.
        settings: how to corrupt and what to read.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.
        method: ``exact``, every cell is run; ``approximate``, all are estimated to the first order from derivatives at
            the corrupted runs (attribution patching), ``low`` and ``high`` being exact; ``screened``, the tenth with
            the largest estimates is run, see ``screen``. ``exact`` of a result says which cells are.

    Raises:
        InputError: as ``trace`` does.
        UnsupportedModelError: as ``trace`` does.
    """
    settings = settings or TraceSettings()
    check_mediators(mediators)
    if method not in TRACE_METHODS:
        raise InputError(unknown("method", method, TRACE_METHODS))
    inputs = trace_inputs(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
    )
    if method == APPROXIMATE:
        return estimate_traces(model, tokenizer, inputs, mediators, settings)
    if method == SCREENED:
        screened = screen_traces(model, tokenizer, inputs, mediators, settings)
        return {name: screening.result for name, screening in screened.items()}
    return trace_exactly(model, tokenizer, inputs, mediators, settings)


def screen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    share: float = 0.1,
    top: int | None = None,
    mediators: Sequence[str] = DEFAULT_MEDIATORS,
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
) -> dict[str, Screening]:
    """Estimate the traces of one prompt, and trace exactly the cells with the largest estimated effects.

    Args:
        model: as in ``trace``, like all that is not told here. No gradient is left on it.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        share: of each mediator's cells, above 0 and up to 1, rounded up: those whose indirect effect, upwards or
            downwards, is estimated to be largest.
        top: how many cells of each mediator, in place of a share.
        mediators: which, in the order of the result.
        settings: how to corrupt and what to read.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.

    Raises:
        InputError: as ``trace`` does, or if ``share`` or ``top`` choose nothing.
        UnsupportedModelError: as ``trace`` does.

    Example:
        >>> found = screen(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> found["hidden"].result.exact.mean()  # doctest: +SKIP
    """
    settings = settings or TraceSettings()
    check_mediators(mediators)
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
    )
    return screen_traces(model, tokenizer, inputs, mediators, settings, share=share, top=top)
