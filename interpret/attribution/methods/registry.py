"""The table of attribution methods, read by calls, commands and their help. ``register_method`` adds rows.

This module imports no torch, so listing the methods is fast.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, Literal

from interpret.errors import InputError

Part = Literal["step", "steps", "activation", "text"]
How = Literal["sum", "l2", "mean"]
"""How the embedding dimension of scores is reduced."""


@dataclass(frozen=True)
class AttributionMethod:
    """One attribution method."""

    description: str
    """A short description of the scores, for ``--help``."""
    function: Callable[..., Any] | str
    """``fn(step, **options)`` gets a ``steps.Step`` and returns scores of the tokens before it, [T] or [T, D]; options
    are keyword-only arguments with defaults. A string names a function of this package, as ``gradients.saliency``."""
    together: bool = False
    """Whether it takes all steps of a text at once, and returns the scores of each."""
    layers: bool = False
    """Whether it is a layer method: ``fn(steps, names, **options)`` also takes activation names, and returns for each
    step a dict: name -> [T, D]."""
    gradients: bool = True
    """Whether it needs gradients."""
    translations: bool = True
    """Whether it supports encoder-decoder models, such as those that translate."""
    groups: bool = False
    """Whether it can mask groups of tokens together."""
    reduction: How = "sum"
    """How the embedding dimension is reduced by default: the signed ``sum`` where a score is a share of the value.
    A plain gradient is none, and its sum says nothing: a model that begins with a LayerNorm does not notice a number
    that is added to all dimensions, so that the sum is 0. It has the norm ``l2``."""
    part: Part = "step"
    """The part of its work on a text that a run stores as a whole: a ``step``; some ``steps`` that share their
    forward passes; an ``activation`` at these steps; the whole ``text``, whose passes serve all steps."""

    @property
    def fn(self) -> Callable[..., Any]:
        """The function itself."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(".")
        found: Callable[..., Any] = getattr(import_module(f"{__package__}.{module}"), name)
        return found

    def options(self) -> dict[str, Any]:
        """Return the options of the method, with their defaults."""
        from interpret.attribution.steps.functions import keyword_options

        return keyword_options(self.fn)


METHODS: dict[str, AttributionMethod] = {
    "saliency": AttributionMethod(
        "norm of the gradient with respect to each embedding",
        "gradients.saliency",
        together=True,
        reduction="l2",
        part="steps",
    ),
    "input_x_gradient": AttributionMethod(
        "gradient times embedding: first-order effects", "gradients.input_x_gradient", together=True, part="steps"
    ),
    "integrated_gradients": AttributionMethod(
        "gradients along a path from a baseline; the scores add up to the change of the value",
        "gradients.integrated_gradients",
        together=True,
        part="steps",
    ),
    "sequential_integrated_gradients": AttributionMethod(
        "integrated gradients of one token at a time, while the others stay",
        "gradients.sequential_integrated_gradients",
        together=True,
        part="steps",
    ),
    "discretized_integrated_gradients": AttributionMethod(
        "gradients along a path of words from a baseline",
        "discretized.discretized_integrated_gradients",
        together=True,
        part="steps",
    ),
    "deeplift": AttributionMethod(
        "differences from a baseline, backpropagated by DeepLIFT's rescale rule",
        "gradients.deeplift",
        together=True,
        translations=False,
        part="steps",
    ),
    "gradient_shap": AttributionMethod(
        "gradients at random points between baseline and text",
        "gradients.gradient_shap",
        together=True,
        part="steps",
    ),
    "layer_gradient_x_activation": AttributionMethod(
        "gradient times activation, for activations inside the model",
        "layer_gradients.layer_gradient_x_activation",
        together=True,
        layers=True,
        translations=False,
        part="steps",
    ),
    "layer_integrated_gradients": AttributionMethod(
        "integrated gradients of activations inside the model",
        "layer_gradients.layer_integrated_gradients",
        together=True,
        layers=True,
        translations=False,
        part="activation",
    ),
    "layer_deeplift": AttributionMethod(
        "DeepLIFT of activations inside the model",
        "layer_gradients.layer_deeplift",
        together=True,
        layers=True,
        translations=False,
        part="steps",
    ),
    "attention": AttributionMethod("what the heads attend to", "attention.attention", gradients=False),
    "value_zeroing": AttributionMethod(
        "how much layers change if a token's value vectors are zeroed",
        "value_zeroing.value_zeroing",
        together=True,
        gradients=False,
        translations=False,
        part="steps",
    ),
    "occlusion": AttributionMethod(
        "drop of the value when a token is masked",
        "masking.occlusion",
        together=True,
        gradients=False,
        groups=True,
        part="text",
    ),
    "lime": AttributionMethod(
        "coefficients of a linear model fitted to masked texts",
        "masking.lime",
        together=True,
        gradients=False,
        groups=True,
        part="text",
    ),
    "reagent": AttributionMethod(
        "importance for the probability, from texts with other plausible tokens",
        "reagent.reagent",
        gradients=False,
        translations=False,
    ),
    "kernel_shap": AttributionMethod(
        "Shapley values, from masked texts; the scores add up to the change of the value",
        "shapley.kernel_shap",
        together=True,
        gradients=False,
        groups=True,
        part="text",
    ),
}
"""The methods by name, in order of registration."""
BUILT_IN = frozenset(METHODS)


def reduction_of(method: str) -> How:
    """Return how the scores of a method are reduced by default; those of an unknown method are summed."""
    return METHODS[method].reduction if method in METHODS else "sum"


def list_methods() -> list[str]:
    """Return the names of all attribution methods.

    >>> list_methods()[:2]
    ['saliency', 'input_x_gradient']
    """
    return list(METHODS)


def register_method(
    fn: Callable[..., Any],
    identifier: str,
    *,
    description: str = "",
    together: bool = False,
    layers: bool = False,
    gradients: bool = True,
    translations: bool = False,
    overwrite: bool = False,
) -> None:
    """Register an attribution method: calls, commands and their help then accept its name.

    Args:
        fn: ``fn(step, **options)`` -> scores of the tokens before the attributed one, [T], or of each dimension of
            their embeddings, [T, D], which are summed by default. ``step.embeddings`` are the word embeddings of the
            text, [1, T, D], and ``step.value(embeddings)`` is the attributed value, differentiable. Options are
            keyword-only, with defaults.
        identifier: a new name.
        description: a short description of the scores, for ``--help``.
        together: ``fn(steps, **options)`` takes all steps of a text, and returns a list with the scores of each.
        layers: ``fn(steps, names, **options)`` also takes activation names, and returns for each step a dict:
            name -> [T, D].
        gradients: whether it needs gradients.
        translations: whether it supports encoder-decoder models, such as those that translate.
        overwrite: replace a method registered before under this name, as when a notebook cell is run again.

    Raises:
        InputError: if the name is taken, or the parameters are not as above.

    >>> register_method(lambda step: step.embeddings[0].norm(dim=-1), "size", gradients=False)
    >>> list_methods()[-1]
    'size'
    >>> del METHODS["size"]
    """
    if identifier in BUILT_IN or (identifier in METHODS and not overwrite):
        way_out = "choose another name" if identifier in BUILT_IN else "choose another name, or give overwrite=True"
        raise InputError(f"method {identifier!r} already exists; {way_out}")
    _check_parameters(fn, identifier, positional=2 if layers else 1)
    part: Part = "text" if together or layers else "step"
    METHODS[identifier] = AttributionMethod(
        description or identifier, fn, together, layers, gradients, translations, part=part
    )


def _check_parameters(fn: Callable[..., Any], name: str, *, positional: int) -> None:
    """Check that a function takes the required positional arguments, and that its options have defaults."""
    parameters = list(signature(fn).parameters.values())
    given = "steps, names" if positional == 2 else "step"
    by_place = [one for one in parameters if one.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    if len(by_place) != positional:
        raise InputError(f"method {name!r} takes {len(by_place)} positional arguments; define it as def fn({given})")
    for one in parameters:
        if one.kind is Parameter.KEYWORD_ONLY and one.default is Parameter.empty:
            raise InputError(f"method {name!r}: the option {one.name!r} has no default; give it one")
