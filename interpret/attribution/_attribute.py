"""The one call: prompts -> which tokens, or which activations, decide what follows them."""

from collections.abc import Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.attribution.languages import languages_of
from interpret.attribution.plan import Plan, plan_attribution
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed, ScoreArray, side_by_side
from interpret.attribution.steps.functions import Contrast
from interpret.attribution.steps.step import (
    Room,
    Step,
    array,
    embed,
    foil_tokens,
    gathered_details,
    head,
    hidden_states,
)
from interpret.attribution.targets import Alignment, Inputs, Text, one_for_each, texts_of
from interpret.attribution.translation import attributed_translation, translated_texts
from interpret.device import unless_too_large
from interpret.errors import InputError


def attribute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    targets: str | Sequence[str] | None = None,
    *,
    method: str = "input_x_gradient",
    attributed_fn: str = "probability",
    contrast_targets: str | Sequence[str] | None = None,
    contrast: Contrast | None = None,
    alignment: Sequence[Alignment] | None = None,
    step_scores: str | Sequence[str] = (),
    layers: Sequence[int | str] | str | int | None = None,
    start: int | None = None,
    end: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 20,
    source_language: str | None = None,
    target_language: str | None = None,
    **options: Any,
) -> Attribution:
    """Score the tokens of texts, or activations at them, by what they do to each token that follows the prompt.

    Args:
        model: a causal LM of a known family, in evaluation mode, also a quantised one; or M2M100, NLLB or Marian, whose
            prompts are sources, and whose targets are translations alone. It is left as it is, and no gradient on it.
        tokenizer: its tokenizer.
        prompts: one, or several; they are read as they are, with the special tokens the tokenizer adds. Of a chat
            model ``chat_text`` makes them.
        targets: for each prompt, the prompt and what follows it as one text. None: what the model writes, greedily,
            without the token that ends its text.
        method: one of ``list_methods()``.
        attributed_fn: what is attributed, one of ``list_step_functions()``.
        contrast_targets: for each prompt, the prompt and the foil as one text.
        contrast: where foils are read. ``same_context``: after the text itself, P(target | text) - P(foil | text).
            ``own_prefix``: after the foil's own beginning; input methods then follow the embeddings of what both
            texts begin with into both, layer methods those of the text alone.
        alignment: for each prompt, pairs (step, step of the foil), steps counted from 0 after the prompt; needed
            where text and foil differ in length, unless ``end`` leaves the first step alone.
        step_scores: functions that are reported of each step, beside the attributed one.
        layers: of layer methods: names as in ``record``, of ``resid_post``, ``attn_out`` and ``mlp_out``; a site
            alone for all layers, a number for all sites of a layer, None for everything. Of ``attention``: a number, a
            span or a list of numbers, by default the last layer.
        start: the first attributed step; as ``end``, as in a slice of the tokens after the prompt.
        end: one past the last.
        batch_size: how many prompts are continued, and how many points of one step or masked texts are read, side by
            side.
        max_new_tokens: how much the model writes.
        source_language: of translation models but Marian: the code of the language of the prompts, such as ``en`` or
            ``eng_Latn``.
        target_language: of translation models that write several languages: the code of the one to write.
        **options: of the method and of the functions. ``integrated_gradients``, also at layers: ``n_steps``,
            ``baseline``; ``deeplift``, also at layers: ``baseline``; ``gradient_shap``: ``n_samples``, ``noise``,
            ``baseline``, ``seed``; ``attention``: ``heads``, ``aggregate_layers``, ``aggregate_heads``; ``occlusion``:
            ``window``, ``baseline``; ``lime``: ``n_samples``, ``mask_probability``, ``kernel_width``, ``penalty``,
            ``baseline``, ``seed``; functions with dropout: ``n_mcd_steps``, ``seed``. ``info.options`` of what is
            returned has their values. ``layer_integrated_gradients`` takes ``n_steps`` passes for each step and
            activation: name few ``layers``.

    Returns:
        One entry a prompt; scores are signed, and those of gradient methods still have a width, see ``aggregate``.

    Raises:
        InputError: for an unknown method, function, layer or option, texts that do not fit, a model in training
            mode or without gradients.
        UnsupportedModelError: for a model of no known family.

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
        start=start,
        end=end,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        languages=languages_of(model, tokenizer, source_language, target_language),
        options=options,
        arguments=signature(attribute).parameters,
    )
    inputs = one_for_each(prompts, targets, contrast_targets, alignment)
    return Attribution(list(attributions(plan, inputs)), plan.info)


def attributions(plan: Plan, inputs: Inputs) -> Iterator[Attributed]:
    """Yield the attribution of each input, in order; no more than one batch of texts is held at a time.

    Raises:
        InputError: for texts that do not fit, before the first is attributed where all are given; for one that is too
            large for the memory.
    """
    one = attributed if plan.languages is None else attributed_translation
    if inputs.targets is not None:
        check_texts(plan, inputs)
    for texts in _batches(plan, inputs):
        for text in texts:
            found = unless_too_large(partial(one, plan, text))
            if found is None:
                raise InputError(
                    f"a text of {len(text.ids)} tokens does not fit in memory, not even one pass at a time: "
                    "shorten it, use a smaller dtype, or another device"
                )
            yield found


def check_texts(plan: Plan, inputs: Inputs) -> None:
    """Read all texts of inputs whose targets are given, a batch at a time, and forget them.

    Raises:
        InputError: for texts that do not fit.
    """
    for _ in _batches(plan, inputs):
        pass


def _batches(plan: Plan, inputs: Inputs) -> Iterator[list[Text]]:
    read = texts_of if plan.languages is None else translated_texts
    for first in range(0, len(inputs.prompts), plan.batch_size):
        yield read(plan, inputs, first)


def attributed(plan: Plan, text: Text) -> Attributed:
    """Attribute one text."""
    room = Room()
    steps = [
        Step(
            plan.model, plan.tokenizer, text.ids[:column], text.ids[column], foil, plan.function, plan.batch_size, room
        )
        for column, foil in zip(range(text.start, text.stop), text.foils, strict=True)
    ]
    step_scores = _step_scores(plan, text, steps)
    with torch.enable_grad():
        scores, layer_scores = _scores(plan, text, steps)
    return Attributed(
        tokens=tuple(plan.tokenizer.convert_ids_to_tokens(list(text.ids))),
        token_ids=text.ids,
        n_prompt=text.n_prompt,
        start=text.start,
        stop=text.stop,
        scores=scores,
        layer_scores=layer_scores,
        step_scores=step_scores,
        details=gathered_details(steps),
        foil_tokens=foil_tokens(steps),
    )


def _scores(plan: Plan, text: Text, steps: Sequence[Step]) -> tuple[ScoreArray | None, dict[str, ScoreArray]]:
    n_tokens = len(text.ids)
    if not plan.method.layers:
        return side_by_side(plan.method.scores(steps, plan.method_options), n_tokens), {}
    of_steps = plan.method.fn(steps, plan.layers, **plan.method_options)
    return None, {name: side_by_side([array(of[name]) for of in of_steps], n_tokens) for name in plan.layers}


@torch.no_grad()
def _step_scores(plan: Plan, text: Text, steps: Sequence[Step]) -> dict[str, ScoreArray]:
    """Return every function that is reported, [G] each; the text is read once."""
    states = hidden_states(plan.model, embed(plan.model, text.ids[: text.stop - 1]))
    values: dict[str, list[float]] = {name: [] for name in plan.step_scores}
    for step in steps:
        reading = step.reading(head(plan.model, states[:, len(step.ids) - 1]), step.embeddings)
        for name, function in plan.step_scores.items():
            values[name].append(function(reading).item())
    return {name: np.array(of_steps) for name, of_steps in values.items()}
