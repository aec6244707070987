"""The ``attribute`` call: from prompts to scores of tokens or activations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.anatomy.passes import grad_mode
from interpret.attribution.groups import Groups
from interpret.attribution.parts import TextParts, scores_of
from interpret.attribution.plan import Plan, plan_attribution
from interpret.attribution.result.aggregation import merged, whole_answer
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed, ScoreArray, side_by_side
from interpret.attribution.result.show import not_finite
from interpret.attribution.seq2seq import Seq2SeqStep, texts_with_sources
from interpret.attribution.seq2seq_texts import seq2seq_texts_of
from interpret.attribution.steps.functions import Contrast
from interpret.attribution.steps.step import Room, Step, foil_tokens, gathered_details
from interpret.attribution.targets import Alignment, Inputs, Target, Text, check_foils, one_for_each, texts_of
from interpret.device import unless_too_large
from interpret.errors import InputError
from interpret.finite import warn
from interpret.prompts.spelling import words
from interpret.work.progress import showing

T = TypeVar("T")


@unwrapping
def attribute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    targets: str | Sequence[Target] | None = None,
    *,
    method: str = "input_x_gradient",
    attributed_fn: str | Callable[..., torch.Tensor] = "probability",
    contrast_targets: str | Sequence[Target] | None = None,
    contrast: Contrast | None = None,
    alignment: Sequence[Alignment] | None = None,
    step_scores: str | Callable[..., torch.Tensor] | Sequence[str | Callable[..., torch.Tensor]] = (),
    layers: Sequence[int | str] | str | int | None = None,
    groups: Groups | None = None,
    start: int | None = None,
    end: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 20,
    source_language: str | None = None,
    target_language: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Attribution:
    """Score tokens, or activations at them, by their effect on the prediction of each token after the prompt.

    A token after the prompt whose prediction is explained is called an attributed token; each is one step.

    Args:
        model: a causal LM, which may be quantized, or an encoder-decoder model (T5, FLAN-T5, mT5, BART, Pegasus,
            mBART, M2M100, NLLB, Marian); in evaluation mode. For an encoder-decoder, prompts are the texts that its
            encoder reads, and targets are those that its decoder writes, without the prompts. The model is not changed,
            and no gradient is left on it.
        tokenizer: the model's tokenizer.
        prompts: one or several; tokenized as they are, with the special tokens that the tokenizer puts before a text.
            For a chat model, ``chat_text`` builds them.
        targets: for each prompt, the prompt and its continuation as one text, or the ids of the tokens that follow the
            prompt. None: the model's greedy continuation, without the end-of-text token.
        method: one of ``list_methods()``.
        attributed_fn: the function whose value is attributed, one of ``list_step_functions()``; or a function of
            yours, as ``register_step_function`` takes it. ``answer_log_probability`` is a function of the whole answer,
            the tokens from ``start`` to ``end``: the sum of their ln P, as a function of the prompt. It has one step,
            and only the tokens of the prompt are scored.
        contrast_targets: for each prompt, the prompt and the foil as one text, or the ids of the foil's tokens.
        contrast: the context of the foil. ``same_context``: that of the target, P(target | text) - P(foil | text).
            ``own_prefix``: the foil's own preceding tokens. Scores of input methods then include the effect of the
            common prefix on both probabilities; layer methods treat P(foil) as constant once the two prefixes differ.
        alignment: for each prompt, pairs (step, step of the foil), steps counted from 0 after the prompt; required
            if text and foil differ in length, unless ``end`` leaves only the first step.
        step_scores: functions to report for each step, besides the attributed one; names, or functions of yours.
        layers: for layer methods: activation names as in ``record``, at the sites ``resid_post``, ``attn_out`` and
            ``mlp_out``; a site without a layer selects all layers, a number all sites of that layer, None and ``all``
            everything. For ``attention`` and ``value_zeroing``: a layer number, a span, a list of numbers or ``all``;
            by default the last layer, and all layers. Selectors such as ``0:20:5`` are understood as in the command.
        groups: for ``occlusion``, ``lime`` and ``kernel_shap``: which tokens of a prompt are masked together, as one.
            A unit: ``words``, ``lines``, ``sentences``, ``paragraphs``; a template that the prompt fits, with
            its fields in braces, as ``"{name} lives in {city}"``; or a list of parts of the prompt. Tokens in no group
            are never masked. In the result, a group is one token. None: each token alone, also those after the prompt.
        start: the first attributed step; ``start`` and ``end`` are a slice of the tokens after the prompt.
        end: one past the last attributed step.
        batch_size: how many prompts are continued in one batch, and how many points or masked texts of one step are
            run in one batch.
        max_new_tokens: maximum number of tokens the model generates for a prompt.
        source_language: for M2M100, NLLB and mBART: the language code of the prompts, such as ``en``, ``eng_Latn`` or
            ``en_XX``.
        target_language: for these, and for Marian models with several target languages: the language code of the
            targets.
        progress: show a progress bar while it runs, in a terminal or a notebook.
        **options: of the method and the functions. ``integrated_gradients``, also at layers: ``n_steps``, ``baseline``;
            ``sequential_integrated_gradients``: the same; ``discretized_integrated_gradients``: also ``strategy``,
            ``n_neighbors``; ``deeplift``, also at layers: ``baseline``; ``gradient_shap``: ``n_samples``, ``noise``,
            ``baseline``, ``seed``; ``attention``: ``heads``, ``aggregate_layers``, ``aggregate_heads``;
            ``value_zeroing``: ``aggregate_layers``; ``occlusion``: ``window``, ``baseline``; ``lime``: ``n_samples``,
            ``mask_probability``, ``kernel_width``, ``penalty``, ``baseline``, ``seed``; ``kernel_shap``: ``n_samples``,
            ``baseline``, ``seed``; ``reagent``: ``n_probes``, ``max_rounds``, ``replaced``, ``kept``, ``top_k``,
            ``seed``; functions with dropout: ``n_mcd_steps``, ``seed``. ``info.options`` of the result
            has their values. ``layer_integrated_gradients`` needs ``n_steps`` passes for each step and activation:
            choose few ``layers``.

    Returns:
        One entry per prompt. Scores are signed (except ``attention``); those of gradient methods still have the
        embedding dimension, see ``aggregate``. Scores that are not finite are counted in a warning.

    Raises:
        InputError: for an unknown method, function, layer or option, an invalid text (such as one that is too long),
            or a model in training mode or without gradients.
        UnsupportedModelError: if logits from the model's states are not its own, its attention is not causal, it is
            hidden in a wrapper, or the method needs a supported family.

    Example:
        >>> found = attribute(model, tokenizer, "The capital of France is", max_new_tokens=1)  # doctest: +SKIP
        >>> found.aggregate().to_frame()  # doctest: +SKIP
    """
    plan = plan_attribution(
        model,
        tokenizer,
        method=method,
        attributed_fn=attributed_fn,
        contrast=contrast,
        with_foils=contrast_targets is not None,
        step_scores=step_scores,
        layers=layers,
        groups=groups,
        start=start,
        end=end,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seq2seq=seq2seq_texts_of(model, tokenizer, source_language, target_language),
        options=options,
        arguments=signature(attribute).parameters,
    )
    inputs = one_for_each(prompts, targets, contrast_targets, alignment)
    with showing("Attributing", shown=progress):
        found = Attribution(list(attributions(plan, inputs)), plan.info)
    warn(not_finite(found))
    return found


def attributions(plan: Plan, inputs: Inputs, parts: TextParts | None = None) -> Iterator[Attributed]:
    """Yield the attribution of each input, in order; only one batch of texts is held at a time.

    Args:
        plan: of the attribution.
        inputs: the inputs.
        parts: where the parts of the only input are stored; None to store nothing.

    Raises:
        InputError: for an invalid text (if targets are given, before the first text is attributed), or one that does
            not fit in memory.
    """
    return of_texts(plan, inputs, partial(attributed, plan, parts=parts or TextParts()))


def of_texts(plan: Plan, inputs: Inputs, work: Callable[[Text], T]) -> Iterator[T]:
    """Yield the result of ``work`` for the text of each input, in order.

    Raises:
        InputError: as ``attributions`` raises.
    """
    if inputs.targets is not None:
        check_texts(plan, inputs)
    for texts in _batches(plan, inputs):
        for text in texts:
            found = unless_too_large(partial(work, text))
            if found is None:
                raise InputError(
                    f"a text of {len(text.ids)} tokens does not fit in memory, even one pass at a time: "
                    "shorten it, use a smaller dtype, or use another device"
                )
            yield found


def check_texts(plan: Plan, inputs: Inputs) -> None:
    """Tokenize and check all texts of inputs with given targets, one batch at a time; the tokens are not kept.

    Raises:
        InputError: for an invalid text.
    """
    for _ in _batches(plan, inputs):
        pass


def _batches(plan: Plan, inputs: Inputs) -> Iterator[list[Text]]:
    read = texts_of if plan.seq2seq is None else texts_with_sources
    for first in range(0, len(inputs.prompts), plan.batch_size):
        texts = read(plan, inputs, first)
        for number, text in enumerate(texts, first):
            check_foils(text, number)
        yield texts


def attributed(plan: Plan, text: Text, parts: TextParts) -> Attributed:
    """Attribute one text; for an encoder-decoder, the scores of source and target are separated."""
    steps = steps_of(plan, text, parts)
    step_scores = _step_scores(plan, steps)
    with grad_mode(True):
        by_activation = scores_of(plan.method, steps, plan.layers, plan.method_options, parts)
    n_source, ids = text.n_source, text.ids[text.n_source :]
    scores = {
        name: side_by_side([of_step[n_source:] for of_step in of_steps], len(ids))
        for name, of_steps in by_activation.items()
    }
    found = Attributed(
        tokens=text.pieces[n_source:],
        token_ids=ids,
        words=tuple(words(plan.tokenizer, ids)),
        n_prompt=text.n_prompt - n_source,
        start=text.start - n_source,
        stop=text.stop - n_source,
        scores=scores.pop("", None),
        layer_scores=scores,
        step_scores=step_scores,
        details=gathered_details(steps),
        foil_tokens=foil_tokens(steps),
    )
    if n_source:
        found = _with_source(plan, text, found, by_activation[""])
    if plan.groups is not None:
        found = merged(found, text.groups or (), plan.info.step_aggregates)
    return whole_answer(found, plan.info.step_aggregates) if plan.whole else found


def steps_of(plan: Plan, text: Text, parts: TextParts) -> list[Step]:
    """Return the attributed tokens of a text, in order; they share their room in memory and their stored parts."""
    make: Callable[..., Step] = Step
    if plan.seq2seq is not None:
        make = partial(Seq2SeqStep, n_source=text.n_source, flags=plan.seq2seq.flags)
    room = Room()
    return [
        make(
            plan.model,
            plan.tokenizer,
            text.ids[:column],
            text.ids[column],
            foil,
            plan.function,
            plan.batch_size,
            room,
            parts.stored,
            text.groups,
        )
        for column, foil in zip(range(text.start, text.stop), text.foils, strict=True)
    ]


def _with_source(plan: Plan, text: Text, found: Attributed, scores: Sequence[ScoreArray]) -> Attributed:
    """Add the source of an encoder-decoder and its part of the scores of each step, [S + T_t, ...]."""
    ids = text.ids[: text.n_source]
    return replace(
        found,
        source_tokens=text.pieces[: text.n_source],
        source_ids=ids,
        source_words=tuple(words(plan.tokenizer, ids)),
        source_scores=np.stack([of_step[: text.n_source] for of_step in scores], axis=1),
    )


@torch.no_grad()
def _step_scores(plan: Plan, steps: Sequence[Step]) -> dict[str, ScoreArray]:
    """Return the values of all reported functions, [G] each, from one forward pass."""
    last = steps[-1]
    states = last.states(last.embeddings)  # of an encoder-decoder, the decoder's only
    values: dict[str, list[float]] = {name: [] for name in plan.step_scores}
    for step in steps:
        column = len(step.ids) - len(last.ids) - 1  # from the end
        reading = step.reading(step.head(states[:, column]), step.embeddings)
        for name, function in plan.step_scores.items():
            values[name].append(function(reading).item())
    return {name: np.array(of_steps) for name, of_steps in values.items()}
