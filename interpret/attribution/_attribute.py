"""The ``attribute`` call: from prompts to scores of tokens or activations."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy.passes import grad_mode
from interpret.attribution.groups import Groups
from interpret.attribution.languages import languages_of
from interpret.attribution.parts import TextParts, scores_of
from interpret.attribution.plan import Plan, plan_attribution
from interpret.attribution.result.aggregation import merged, whole_answer
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed, ScoreArray, side_by_side
from interpret.attribution.result.show import not_finite
from interpret.attribution.steps.functions import Contrast
from interpret.attribution.steps.step import (
    Room,
    Step,
    embed,
    foil_tokens,
    gathered_details,
    head,
    hidden_states,
)
from interpret.attribution.targets import Alignment, Inputs, Target, Text, check_foils, one_for_each, texts_of
from interpret.attribution.translation import attributed_translation, translated_texts
from interpret.device import unless_too_large
from interpret.errors import InputError
from interpret.finite import warn
from interpret.prompts.spelling import words
from interpret.work.progress import showing

T = TypeVar("T")


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
        model: a causal LM, which may be quantized, or a translation model (M2M100, NLLB,
            Marian); in evaluation mode. For a translation model, prompts are source texts and targets are
            translations without the source. The model is not changed, and no gradient is left on it.
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
        source_language: for translation models except Marian: the language code of the prompts, such as ``en`` or
            ``eng_Latn``.
        target_language: for translation models with several target languages: the language code of the translations.
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
        languages=languages_of(model, tokenizer, source_language, target_language),
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
    one = attributed if plan.languages is None else attributed_translation
    return of_texts(plan, inputs, partial(one, plan, parts=parts or TextParts()))


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
    read = texts_of if plan.languages is None else translated_texts
    for first in range(0, len(inputs.prompts), plan.batch_size):
        texts = read(plan, inputs, first)
        for number, text in enumerate(texts, first):
            check_foils(text, number)
        yield texts


def steps_of(plan: Plan, text: Text, parts: TextParts) -> list[Step]:
    """Return the attributed tokens of one text."""
    room = Room()
    return [
        Step(
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


def attributed(plan: Plan, text: Text, parts: TextParts) -> Attributed:
    """Attribute one text."""
    steps = steps_of(plan, text, parts)
    step_scores = _step_scores(plan, text, steps)
    with grad_mode(True):
        by_activation = scores_of(plan.method, steps, plan.layers, plan.method_options, parts)
    scores = {name: side_by_side(of_steps, len(text.ids)) for name, of_steps in by_activation.items()}
    found = Attributed(
        tokens=text.pieces,
        token_ids=text.ids,
        words=tuple(words(plan.tokenizer, text.ids)),
        n_prompt=text.n_prompt,
        start=text.start,
        stop=text.stop,
        scores=scores.pop("", None),
        layer_scores=scores,
        step_scores=step_scores,
        details=gathered_details(steps),
        foil_tokens=foil_tokens(steps),
    )
    if plan.groups is not None:
        found = merged(found, text.groups or (), plan.info.step_aggregates)
    return whole_answer(found, plan.info.step_aggregates) if plan.whole else found


@torch.no_grad()
def _step_scores(plan: Plan, text: Text, steps: Sequence[Step]) -> dict[str, ScoreArray]:
    """Return the values of all reported functions, [G] each, from one forward pass."""
    states = hidden_states(plan.model, embed(plan.model, text.ids[: text.stop - 1]))
    values: dict[str, list[float]] = {name: [] for name in plan.step_scores}
    for step in steps:
        reading = step.reading(head(plan.model, states[:, len(step.ids) - 1]), step.embeddings)
        for name, function in plan.step_scores.items():
            values[name].append(function(reading).item())
    return {name: np.array(of_steps) for name, of_steps in values.items()}
