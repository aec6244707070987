"""The methods of attribution by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interpret.attribution.methods.attention import attention
from interpret.attribution.methods.gradients import (
    deeplift,
    gradient_shap,
    input_x_gradient,
    integrated_gradients,
    saliency,
)
from interpret.attribution.methods.layer_gradients import (
    layer_deeplift,
    layer_gradient_x_activation,
    layer_integrated_gradients,
)
from interpret.attribution.methods.masking import lime, occlusion
from interpret.attribution.result.scores import ScoreArray
from interpret.attribution.steps.functions import keyword_options
from interpret.attribution.steps.step import Step, array


@dataclass(frozen=True)
class Method:
    """One method.

    ``fn(step, **options)`` gets a ``steps.Step`` and returns scores of the tokens before it, [T] or [T, D]. Options are
    keyword-only arguments with defaults.
    """

    fn: Callable[..., Any]
    together: bool = False
    """Whether it gets all steps of a text at once, and returns the scores of each."""
    layers: bool = False
    """Whether it also gets names of activations, ``fn(steps, names, **options)``, and returns for each step a dict:
    name -> [T, D]."""
    gradients: bool = True
    """Whether it goes backward through the model."""
    translations: bool = True
    """Whether it is for translation models too."""

    def scores(self, steps: Sequence[Step], options: Mapping[str, Any]) -> list[ScoreArray]:
        """Return the scores of all steps of a text, of a method that is not of layers: [T] or [T, D] each."""
        found = self.fn(steps, **options) if self.together else [self.fn(step, **options) for step in steps]
        return [array(of_step) for of_step in found]

    def options(self) -> dict[str, Any]:
        """Return its options, with their defaults."""
        return keyword_options(self.fn)


METHODS: dict[str, Method] = {
    "saliency": Method(saliency, together=True),
    "input_x_gradient": Method(input_x_gradient, together=True),
    "integrated_gradients": Method(integrated_gradients),
    "deeplift": Method(deeplift, translations=False),
    "gradient_shap": Method(gradient_shap),
    "layer_gradient_x_activation": Method(layer_gradient_x_activation, together=True, layers=True, translations=False),
    "layer_integrated_gradients": Method(layer_integrated_gradients, together=True, layers=True, translations=False),
    "layer_deeplift": Method(layer_deeplift, together=True, layers=True, translations=False),
    "attention": Method(attention, gradients=False),
    "occlusion": Method(occlusion, together=True, gradients=False),
    "lime": Method(lime, together=True, gradients=False),
}


def list_methods() -> list[str]:
    """Return the names of all methods of attribution.

    >>> list_methods()[:2]
    ['saliency', 'input_x_gradient']
    """
    return list(METHODS)
