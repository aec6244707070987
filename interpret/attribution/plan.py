"""The plan of an attribution: all that does not depend on an input, checked once before anything runs."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import check_evaluating, check_logits
from interpret.attribution.groups import Groups, check_groups
from interpret.attribution.methods.gradients import check_count
from interpret.attribution.methods.layer_gradients import layer_names
from interpret.attribution.methods.registry import METHODS, AttributionMethod
from interpret.attribution.result.scores import AttributionInfo
from interpret.attribution.seq2seq_texts import Seq2SeqTexts
from interpret.attribution.steps.functions import (
    CONTRASTS,
    Contrast,
    StepFunction,
    StepReading,
    chosen_functions,
    value_of,
)
from interpret.errors import InputError, brief, closest, unknown


@dataclass(frozen=True)
class Plan:
    """Model, method, functions and options: the same for all inputs."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    method: AttributionMethod
    method_options: Mapping[str, Any]
    function: Callable[[StepReading], Tensor]
    """The attributed function, with its options."""
    step_scores: Mapping[str, Callable[[StepReading], Tensor]]
    """The functions reported for each step; the attributed function is the first."""
    layers: tuple[str, ...]
    """Activation names; empty except for layer methods."""
    contrast: Contrast | None
    groups: Groups | None
    """Tokens that are masked together; None: each alone."""
    whole: bool
    """Whether the attributed tokens are attributed as one value."""
    seq2seq: Seq2SeqTexts | None
    """How the texts of an encoder-decoder become tokens; None for a causal LM."""
    start: int | None
    end: int | None
    batch_size: int
    max_new_tokens: int
    info: AttributionInfo


def plan_attribution(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    method: str,
    attributed_fn: str | Callable[..., Tensor],
    contrast: Contrast | None,
    with_foils: bool,
    step_scores: str | Callable[..., Tensor] | Sequence[str | Callable[..., Tensor]],
    layers: Sequence[int | str] | str | int | None,
    start: int | None,
    end: int | None,
    batch_size: int,
    max_new_tokens: int,
    options: Mapping[str, Any],
    groups: Groups | None = None,
    seq2seq: Seq2SeqTexts | None = None,
    arguments: Collection[str] = (),
) -> Plan:
    """Check all arguments that do not depend on an input, and return the plan.

    The arguments are those of ``attribute``. In addition, ``with_foils`` is whether contrast targets are given,
    ``seq2seq`` is the result of ``seq2seq_texts_of``, ``options`` are those of the method and the functions, and
    ``arguments`` are argument names that may be suggested in place of an unknown option.

    Raises:
        InputError: for a wrong argument, arguments that do not fit together, or a model in training mode or without
            gradients.
        UnsupportedModelError: if the model is hidden in a wrapper, logits from its states are not its own, its
            attention is not causal, or a layer method is chosen for a family that is not supported.
    """
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    chosen = METHODS[method]
    if layers is not None and "layers" in chosen.options():  # ``attention`` has its own option ``layers``
        options, layers = {**options, "layers": layers}, None
    reported = [step_scores] if isinstance(step_scores, str) or callable(step_scores) else step_scores
    functions = chosen_functions([attributed_fn, *reported], with_foils=with_foils)
    name = next(iter(functions))
    check_count("batch_size", batch_size)
    check_count("max_new_tokens", max_new_tokens)
    if seq2seq is not None:
        _check_seq2seq(method, chosen)
        if groups is not None:
            raise InputError("groups are for decoder-only models; this one is an encoder-decoder")
    check_takes_groups(method, groups)
    _check_contrast(functions, contrast, with_foils)
    check_method_options(method, functions.values(), options, arguments)
    _check_model(model, chosen)
    if layers is not None:
        check_takes_layers(method)
    if chosen.layers and functions[name].dropout:
        raise InputError(f"{name!r} needs several passes, but layer methods use one; attribute another function")
    own = _given(chosen.options(), options)
    own_of = {one: _given(each.options(), options) for one, each in functions.items()}
    bound = {one: partial(value_of, partial(each.fn, **own_of[one]), one) for one, each in functions.items()}
    info = AttributionInfo(
        method=method,
        attributed_fn=name,
        unit=functions[name].unit,
        contrast=contrast,
        step_units={one: each.unit for one, each in functions.items()},
        step_aggregates={one: each.aggregate for one, each in functions.items()},
        model=model.config.name_or_path or type(model).__name__,
        tokenizer=tokenizer.name_or_path or type(tokenizer).__name__,
        options=_plain(own | {key: value for each in own_of.values() for key, value in each.items()})
        | ({} if groups is None else {"groups": groups if isinstance(groups, str) else list(groups)}),
    )
    return Plan(
        model=model,
        tokenizer=tokenizer,
        method=chosen,
        method_options=own,
        function=bound[name],
        step_scores=bound,
        layers=tuple(layer_names(model, layers)) if chosen.layers else (),
        contrast=contrast,
        groups=groups,
        whole=functions[name].whole,
        seq2seq=seq2seq,
        start=start,
        end=end,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        info=info,
    )


def _given(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options.get(key, default) for key, default in defaults.items()}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they are saved: a tuple (a span) as text, because JSON would make it a list of indices."""
    return {key: str(value) if isinstance(value, tuple) else value for key, value in options.items()}


def _check_seq2seq(name: str, method: AttributionMethod) -> None:
    """Raise an InputError for a method that does not support encoder-decoder models."""
    if not method.translations:
        fitting = ", ".join(one for one, each in METHODS.items() if each.translations)
        raise InputError(f"method {name!r} does not support encoder-decoder models; these do: {fitting}")


def _check_contrast(functions: Mapping[str, StepFunction], contrast: str | None, with_foils: bool) -> None:
    needing = [name for name, each in functions.items() if each.contrast]
    if contrast is not None and contrast not in CONTRASTS:
        raise InputError(unknown("contrast", contrast, CONTRASTS))
    if not needing:
        if with_foils or contrast is not None:
            raise InputError("no function uses the contrast: give 'contrast_prob_diff' as attributed_fn or step score")
        return
    if not with_foils:
        raise InputError(f"{needing[0]!r} needs contrast_targets")
    if contrast is None:
        raise InputError(
            f"{needing[0]!r} needs contrast='same_context' (the foil is predicted from the target's prefix) "
            "or contrast='own_prefix' (it is predicted from its own prefix)"
        )


_OTHER_NAMES = {
    "target_layer": "name the activations instead, as layers='mlp_out.3'",
    "attr_pos_start": "give start, counted from the first token after the prompt",
    "attr_pos_end": "give end, counted from the first token after the prompt",
    "input_texts": "give prompts",
    "generated_texts": "give targets",
    "generation_args": "give max_new_tokens; continuations are greedy",
    "contrast_targets_alignments": "give alignment",
    "internal_batch_size": "give batch_size",
    "show_progress": "give progress",
    "output_step_attributions": "leave it out; all steps are kept",
    "n_approximation_steps": "give n_steps",
}
"""Arguments of Inseq, for which a similar name of ours would be a wrong suggestion, and what to write here."""


def check_takes_layers(method: str) -> None:
    """Raise an InputError if a method cannot be limited to some layers."""
    if not METHODS[method].layers and "layers" not in METHODS[method].options():
        raise InputError(f"method {method!r} takes no layers; leave layers out, or use a layer method")


def check_takes_groups(method: str, groups: Groups | None) -> None:
    """Raise an InputError if a method cannot mask groups of tokens, or groups are wrong for every prompt."""
    if groups is None:
        return
    if not METHODS[method].groups:
        fitting = ", ".join(name for name, each in METHODS.items() if each.groups)
        raise InputError(
            f"method {method!r} does not mask tokens together; these take groups: {fitting}; "
            "scores of other methods can be added up, with aggregate(spans=...)"
        )
    check_groups(groups)


def check_method_options(
    name: str, functions: Iterable[StepFunction], options: Mapping[str, Any], arguments: Collection[str] = ()
) -> None:
    """Check that a method, or one of some step functions, has the given options.

    Args:
        name: name of the method.
        functions: the attributed and the reported functions.
        options: the options.
        arguments: names of arguments that may be suggested in place of an unknown option.

    Raises:
        InputError: if an option is unknown.
    """
    if foreign := [name for name in options if name in _OTHER_NAMES]:
        raise InputError(f"unknown argument {foreign[0]!r}; {_OTHER_NAMES[foreign[0]]}")
    known = list(METHODS[name].options())
    known += [option for each in functions for option in each.options()]
    for option in options:
        if option not in known:
            near = closest(option, arguments)
            if near and not closest(option, known):
                raise InputError(f"unknown argument {option!r}; did you mean {near!r}?")
            allowed = unknown("option", option, dict.fromkeys(known)) if known else f"unknown option {brief(option)}"
            raise InputError(f"method {name!r}: {allowed}" + ("" if known else "; it takes no options"))


def _check_model(model: PreTrainedModel, method: AttributionMethod) -> None:
    check_evaluating(model)
    check_logits(model)
    if not method.gradients:
        return
    if torch.is_inference_mode_enabled() or any(weight.is_inference() for weight in model.parameters()):
        raise InputError(
            "no gradient is available: the model was created, or is called, under torch.inference_mode(); "
            "use torch.no_grad() there instead"
        )
