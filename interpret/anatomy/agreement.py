"""Compare what is computed from a model's states with the model's own logits, once per model.

Logits are computed from states in many places: attribution, the logit lens, interpretations, traces. All of them are
right only if (1) no token attends to later ones, (2) word embeddings give the same first layer input as their ids, and
(3) the final norm, the unembedding and the settings of the family's row turn states into the model's own logits.
Likewise, recorded outputs of attention and MLP are what they are said to be only if (4) they add up to the residual
stream. One forward pass of two short texts checks all four. Its result is kept as long as the model's modules, its
configuration and its family's row stay the same; new weights in the same modules need no new check.
Shapes: 2 texts, T tokens, D hidden width, V vocabulary.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from transformers import PreTrainedModel

from interpret.anatomy.agreement_layers import problem_of_mixtures, problem_of_parts, problems_inside
from interpret.anatomy.agreement_logits import (
    problem_of_attention,
    problem_of_both_sides,
    problem_of_embeddings,
    problem_of_head,
)
from interpret.anatomy.agreement_pass import own_result, recording, two_texts
from interpret.anatomy.anatomy import (
    Anatomy,
    anatomy_of,
    base_of,
    check_is_model,
    check_uncompiled,
    text_config,
    text_configs,
)
from interpret.anatomy.difference import in_full_precision
from interpret.anatomy.families import FAMILIES
from interpret.anatomy.passes import evaluating, foreign_changes, without_own_hooks
from interpret.errors import InputError, UnsupportedModelError


def check_logits(model: PreTrainedModel) -> None:
    """Check that logits computed from a model's states are the model's own, and that no token attends to later ones.

    Args:
        model: a causal LM, its base model (only its attention is checked), or an encoder-decoder model.

    Raises:
        UnsupportedModelError: if a logit differs, or changes with a later token; the message gives both figures.
    """
    _raise(_agreement(model).logits)


def check_head(model: PreTrainedModel) -> None:
    """Check what ``check_logits`` does, except that word embeddings can stand for tokens.

    Raises:
        UnsupportedModelError: if a logit differs, or changes with a later token; the message gives both figures.
    """
    _raise(_agreement(model).head)


def check_parts(model: PreTrainedModel) -> None:
    """Check that what attention and MLP add to the residual stream adds up to it, in every layer.

    Raises:
        UnsupportedModelError: if it does not, or the model's family is not supported; the message gives both figures.
    """
    anatomy_of(model)
    _raise(_agreement(model).parts)


def check_insides(model: PreTrainedModel) -> None:
    """Check the parts of layers, as ``check_parts``, and the modules inside: norms, heads and neurons.

    A family that is described without its parts has no modules inside.

    Raises:
        UnsupportedModelError: if something is not what the row of the family says; the message gives both figures.
    """
    check_parts(model)
    _raise(_agreement(model).insides)


def check_scores(model: PreTrainedModel) -> None:
    """Check what ``check_insides`` does, and that the heads attend by the queries and keys that the row names.

    Raises:
        UnsupportedModelError: if they do not; the message gives both figures.
    """
    check_insides(model)
    _raise(_agreement(model).scores)


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise UnsupportedModelError(problem)


def check_evaluating(model: PreTrainedModel) -> None:
    """Check that a model and all its modules are in evaluation mode, or that training mode makes no difference.

    Raises:
        InputError: if two passes of the same text differ because of a module in training mode.
        UnsupportedModelError: if the model is hidden in a wrapper.
    """
    check_is_model(model)
    if model.training:
        raise InputError("the model is in training mode, in which dropout makes every run different; call model.eval()")
    training = [name for name, module in model.named_modules() if module.training]
    if training and not _repeats(model):
        dropouts = [name for name in training if "Dropout" in type(model.get_submodule(name)).__name__]
        raise InputError(
            f"the module {(dropouts or training)[0]!r} is in training mode, in which dropout makes every run "
            "different; call model.eval()"
        )


@torch.no_grad()
def _repeats(model: PreTrainedModel) -> bool:
    """Return whether two passes of the same texts give the same result."""
    ids = two_texts(model)
    with without_own_hooks(), torch.random.fork_rng():
        return torch.equal(own_result(model, ids), own_result(model, ids))


# ---------------------------------------------------------------------------------------------- once per model


@dataclass(frozen=True)
class _Agreement:
    """The problems found, and what the model was made of at that time."""

    made_of: tuple[Any, ...]
    logits: str | None
    """Why logits from embeddings or states are not the model's own; None if they are."""
    head: str | None = None
    """Why logits from states are not the model's own; None if they are."""
    parts: str | None = None
    """Why the parts of layers do not add up; None if they do, or if the family is not supported."""
    insides: str | None = None
    """Why the modules inside are not those of the family's row; None also if the row does not name them."""
    scores: str | None = None
    """Why the heads do not attend by the queries and keys of the family's row."""


_KNOWN: WeakKeyDictionary[nn.Module, _Agreement] = WeakKeyDictionary()


def _agreement(model: PreTrainedModel) -> _Agreement:
    check_is_model(model)
    check_uncompiled(model)
    made_of = composition(model)
    found = _KNOWN.get(model)
    if found is None or found.made_of != made_of:
        found = _KNOWN[model] = _compared(model, made_of)
    return found


def composition(model: PreTrainedModel) -> tuple[Any, ...]:
    """Return what the result of a comparison depends on: modules, settings, the family's row, hooks on the model."""
    plain = (bool, int, float, str, type(None))
    settings = [
        {name: value for name, value in vars(config).items() if isinstance(value, plain) and not name.startswith("_")}
        for config in text_configs(model)
    ]
    # Weak references, because the id of a module that is gone may be given to another one. Hooks inside the model take
    # part wherever their module is called; those on the whole model only in its own passes.
    modules = [ref(module) for module in model.modules()]
    changes = [foreign_changes(part) for part in (model, base_of(model))]
    return model.dtype, settings, FAMILIES.get(text_config(model).model_type), modules, changes


@torch.no_grad()
def _compared(model: PreTrainedModel, made_of: tuple[Any, ...]) -> _Agreement:
    ids, exact = two_texts(model), in_full_precision(model)
    with without_own_hooks(), evaluating(model):
        if model.config.is_encoder_decoder:
            problem = problem_of_both_sides(model, exact, ids)
            return _Agreement(made_of, problem, problem)
        if not _caches(model):  # OpenAI GPT and XLM
            problem = f"{type(model).__name__}: only decoders with a KV cache are supported"
            return _Agreement(made_of, problem, problem)
        anatomy = _anatomy_if_known(model)
        with recording(model, anatomy) as seen:
            own = own_result(model, ids)
            if not seen.returned:  # OPT's causal LM calls the decoder of its base model directly
                base_of(model)(input_ids=ids, use_cache=False)
        later = problem_of_attention(model, exact, own)
        parts = None if anatomy is None else problem_of_parts(model, exact, anatomy, seen)
        insides = scores = None
        # If tokens attend to later ones, the row of the family is not to blame for what heads compute.
        if anatomy is not None and anatomy.family.parts is not None and parts is None and later is None:
            insides, scores = problems_inside(model, exact, anatomy, seen)
        if anatomy is not None and parts is None and later is None:
            insides = insides or problem_of_mixtures(model, exact, anatomy, seen)
        head = later or problem_of_head(model, exact, anatomy, own, seen)
        logits = later or problem_of_embeddings(model, exact, anatomy, ids, seen) or head
        return _Agreement(made_of, logits, head, parts, insides, scores)


def _caches(model: PreTrainedModel) -> bool:
    """Return whether a model has a KV cache, which can be turned off."""
    known = signature(base_of(model).forward).parameters
    return "use_cache" in known or any(one.kind is one.VAR_KEYWORD for one in known.values())


def _anatomy_if_known(model: PreTrainedModel) -> Anatomy | None:
    try:
        return anatomy_of(model)
    except UnsupportedModelError:
        return None
