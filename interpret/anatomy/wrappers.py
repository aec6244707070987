"""Take models out of the wrappers of ``torch.compile`` and PEFT.

Both pass everything on to a model inside, which is the one to analyse: compiled code ignores the hooks that read and
edit states, and the adapters of PEFT are mostly modules of the model inside. Where they are not, as in prompt tuning,
the wrapper and the model inside compute different logits, and the wrapper is refused.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from interpret.anatomy.agreement_pass import own_result, two_texts
from interpret.anatomy.difference import apart, in_full_precision
from interpret.anatomy.failures import FAILURES, failure
from interpret.anatomy.passes import evaluating, without_own_hooks
from interpret.errors import UnsupportedModelError

P = ParamSpec("P")
R = TypeVar("R")
_COMPILED = "_orig_mod"
"""The attribute in which ``torch.compile`` keeps the model."""
_KNOWN: WeakKeyDictionary[nn.Module, tuple[str, str | None]] = WeakKeyDictionary()
"""For each wrapper of PEFT its active adapters, and why they are not all in the model inside; None if they are."""


def unwrapped(model: Any) -> Any:
    """Return the model inside wrappers of ``torch.compile`` and PEFT; anything else is returned as it is.

    Args:
        model: a model, in a wrapper or not. Adapters that act stay in the model inside.

    Raises:
        UnsupportedModelError: if an adapter acts outside of the model inside.
    """
    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module):
        return model
    if _COMPILED in model._modules:
        return unwrapped(model._modules[_COMPILED])
    get_base_model: Any = getattr(model, "get_base_model", None)
    if get_base_model is None:
        return model
    inside = unwrapped(get_base_model())
    _check_adapters_inside(model, inside)
    return inside


def unwrapping(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take a wrapped model: its argument ``model`` is replaced by the model inside."""
    place = list(signature(function).parameters).index("model")

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if "model" in kwargs:
            kwargs["model"] = unwrapped(kwargs["model"])
        elif len(args) > place:
            args = (*args[:place], unwrapped(args[place]), *args[place + 1 :])  # type: ignore[assignment]
        return function(*args, **kwargs)

    return run


def _check_adapters_inside(wrapper: nn.Module, inside: nn.Module) -> None:
    """Check, once for each choice of active adapters, that the model inside a wrapper of PEFT computes the same."""
    active = str(getattr(wrapper, "active_adapters", None))
    known = _KNOWN.get(wrapper)
    if known is None or known[0] != active:
        known = _KNOWN[wrapper] = (active, _difference(wrapper, inside))
    if known[1] is not None:
        kinds = (getattr(config, "peft_type", None) for config in _adapters(wrapper))
        said = ", ".join(sorted({str(getattr(kind, "value", kind)) for kind in kinds}))
        raise UnsupportedModelError(
            f"{type(wrapper).__name__} ({said}): {known[1]}. Only adapters that are modules of the model are "
            "supported, such as LoRA; model.get_base_model() gives the model inside"
        )


def _adapters(wrapper: Any) -> list[Any]:
    """Return the configurations of a wrapper's adapters."""
    return list(getattr(wrapper, "peft_config", {}).values())


@torch.no_grad()
def _difference(wrapper: nn.Module, inside: nn.Module) -> str | None:
    """Return why the model inside a wrapper does not compute the same for two short texts; None if it does."""
    if any(getattr(config, "alora_invocation_tokens", None) for config in _adapters(wrapper)):
        return "it acts only after certain tokens (alora_invocation_tokens)"
    if not isinstance(inside, PreTrainedModel):
        return f"it runs the model through a {type(inside).__name__}"
    ids, exact = two_texts(inside), in_full_precision(inside)
    try:
        with without_own_hooks(), evaluating(wrapper):
            ours, theirs = own_result(wrapper, ids), own_result(inside, ids)
    except FAILURES as error:
        return f"it cannot read a text by itself ({failure(error)})"
    if ours.shape != theirs.shape:
        return f"of a text with {ids.shape[1]} tokens it makes one with {ours.shape[1]}"
    figures = apart(exact, ours, theirs)
    return figures and f"its logit is {figures[0]:.4g}, where that of the model inside is {figures[1]:.4g}"
