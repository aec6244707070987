"""Causal tracing: which hidden states, restored in a corrupted run, bring the answer back.

Meng et al., "Locating and Editing Factual Associations in GPT" (ROME, 2022), section 2. Three kinds of runs: clean;
corrupted, with noise on the embeddings of the subject; and corrupted with restoration of one state. A score is the
mean over noise samples of the probability of the answer. On the sweep engine; its result is a ``TraceResult``.
"""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.sweep import Metric, sweep
from interpret.tracing.inputs import Target, TraceSettings, trace_inputs
from interpret.tracing.mediators import Mediator, check_mediators, grid_of
from interpret.tracing.result import TraceResult, trace_result


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    mediator: Mediator = "hidden",
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
        model: a causal LM of a known family, in evaluation mode.
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
        UnsupportedModelError: if the model is of no known family.

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
    mediators: Sequence[Mediator] = ("hidden", "attn_severed", "mlp_severed"),
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
) -> dict[Mediator, TraceResult]:
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

    Raises:
        InputError: as ``trace`` does.
        UnsupportedModelError: as ``trace`` does.
    """
    settings = settings or TraceSettings()
    check_mediators(mediators)
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
    grids = {name: grid_of(model, name, inputs, settings.window) for name in mediators}
    found = sweep(
        model,
        inputs.corrupted,
        inputs.clean,
        [cell for cells in grids.values() for cell in cells],
        {"answer": Metric("probability", inputs.answer_ids)},
        memory=settings.memory,
    )
    parts = found.values["answer"].split([len(cells) for cells in grids.values()])
    high, lows = found.donor["answer"].item(), found.base["answer"].numpy()
    return {
        name: trace_result(tokenizer, inputs, name, part.numpy(), high, lows)
        for name, part in zip(grids, parts, strict=True)
    }
