"""Logits from states, as this package computes them, compared with a model's own; ``agreement`` asks for it.

Shapes: 2 texts, T tokens, V vocabulary, D hidden width.
"""

from math import nan

from torch import Tensor
from transformers import PreTrainedModel

from interpret.anatomy.agreement_layers import kind_of, row_of
from interpret.anatomy.agreement_pass import SHARED, Recorded, own_result
from interpret.anatomy.anatomy import Anatomy, base_of, text_config
from interpret.anatomy.calls import first_layer_input
from interpret.anatomy.difference import apart
from interpret.anatomy.encoder_decoders import decode
from interpret.anatomy.failures import FAILURES, failure
from interpret.anatomy.families import FAMILIES
from interpret.anatomy.vocabulary import final_modules, logits_of, word_embeddings


def problem_of_attention(model: PreTrainedModel, exact: bool, own: Tensor) -> str | None:
    """Return a problem if the two texts differ at tokens before their first difference.

    Args:
        model: the model.
        exact: as for ``apart``.
        own: what the model computed for the two texts, [2, T, ...].
    """
    one, other = own[:, :SHARED]
    figures = apart(exact, one, other, tolerance=1e-4)
    if figures is None:
        return None
    config = text_config(model)
    settings = [f"{name}={value}" for name, value in vars(config).items() if "bidirectional" in name and value]
    if not settings and config.model_type not in FAMILIES and not getattr(config, "is_decoder", True):
        settings = ["is_decoder=False"]
    cause = f" (its configuration has {', '.join(settings)})" if settings else ""
    return (
        f"{type(model).__name__}: tokens attend to later tokens{cause}: a prediction changes from {figures[1]:.4g} to "
        f"{figures[0]:.4g} when only a later token changes. Only models with causal attention are supported"
    )


def problem_of_embeddings(
    model: PreTrainedModel, exact: bool, anatomy: Anatomy | None, ids: Tensor, seen: Recorded
) -> str | None:
    """Return why word embeddings cannot stand for tokens; None if they can.

    Args:
        model: the model.
        exact: as for ``apart``.
        anatomy: its parts, if its family is supported.
        ids: the two texts, [2, T].
        seen: what was recorded when the model read them.
    """
    try:
        return _problem_of_embeddings(model, exact, anatomy, ids, seen)
    except FAILURES as error:
        return _cannot_be_computed(model, error)


def problem_of_head(
    model: PreTrainedModel, exact: bool, anatomy: Anatomy | None, own: Tensor, seen: Recorded
) -> str | None:
    """Return why logits cannot be computed from states and the unembedding; None if they can, or without unembedding.

    Args:
        model: the model.
        exact: as for ``apart``.
        anatomy: its parts, if its family is supported.
        own: the logits that the model computed for the two texts, [2, T, V].
        seen: what was recorded at the same time.
    """
    try:
        return None if model.get_output_embeddings() is None else _problem_of_head(model, exact, anatomy, own, seen)
    except FAILURES as error:
        return _cannot_be_computed(model, error)


def _cannot_be_computed(model: PreTrainedModel, error: Exception) -> str:
    return (
        f"{kind_of(model)}: its logits cannot be computed from word embeddings, its last state and its unembedding, as "
        f"those of other models ({failure(error)})"
    )


def problem_of_both_sides(model: PreTrainedModel, exact: bool, ids: Tensor) -> str | None:
    """Return why the logits of an encoder-decoder cannot be computed, for texts [2, T] as targets; None if they can."""
    own = own_result(model, ids)
    source, text = (word_embeddings(model, rows) for rows in (ids[:1].expand_as(ids), ids))
    figures = apart(exact, logits_of(model, decode(model, source, text)[0]), own)
    return problem_of_attention(model, exact, own) or (None if figures is None else _other_logits(model, figures))


def _problem_of_embeddings(
    model: PreTrainedModel, exact: bool, anatomy: Anatomy | None, ids: Tensor, seen: Recorded
) -> str | None:
    embeddings = word_embeddings(model, ids)
    if anatomy is not None:
        what, theirs = "the first layer's input", seen.layers[0]["resid_pre"]
        ours = first_layer_input(anatomy, embeddings, 0)
        if anatomy.family.parts is None:  # Gemma 4 takes only the embeddings of tokens, and looks their ids up
            first_layer_input(anatomy, 0.5 * embeddings, 0)
    else:
        what, theirs = "the last state", seen.states
        ours = base_of(model)(inputs_embeds=embeddings.clone(), use_cache=False)[0]
    figures = apart(exact, ours, theirs)
    if figures is None:
        return None
    return (
        f"{type(model).__name__}: {what} is {figures[0]:.4g} for word embeddings and {figures[1]:.4g} for the ids of "
        "the same tokens, so embeddings cannot stand for tokens; the model scales or changes them when it looks them up"
    )


def _problem_of_head(
    model: PreTrainedModel, exact: bool, anatomy: Anatomy | None, own: Tensor, seen: Recorded
) -> str | None:
    # One token is enough, because every token gets the same unembedding, and one is cheap.
    states, own = seen.states[:1, -1], own[:1, -1]
    if anatomy is not None:
        unembedded = seen.layers[-1]["resid_post"][:1, -1]
        for module in final_modules(anatomy):
            unembedded = module(unembedded)
        if apart(exact, unembedded, states) is not None:
            return _other_logits(model, apart(exact, logits_of(model, unembedded), own) or (nan, nan))
    figures = apart(exact, logits_of(model, states), own)
    return None if figures is None else _other_logits(model, figures)


def _other_logits(model: PreTrainedModel, figures: tuple[float, float]) -> str:
    config = text_config(model)
    settings = {name: value for name, value in vars(config).items() if "logit" in name and value not in (None, 1)}
    said = ", ".join(f"{name}={value}" for name, value in settings.items())
    cause = "between the two, it changes states or logits in a way that is not supported here"
    if said:
        cause = f"its configuration has {said}"
    if config.model_type in FAMILIES:
        cause += f"; {row_of(model)} has to describe this (logit_scale, logit_divisor, final_softcap, final)"
    return (
        f"{kind_of(model)}: unembedding its last state gives a logit of {figures[0]:.4g}, where the model's own is "
        f"{figures[1]:.4g}; {cause}"
    )
