"""Attribute a text part by part; a run stores each finished part, so that an interrupt costs one part, not one prompt.

A part is what one batch of passes, or a few, computes: a step; some steps that share their forward passes; for layer
integrated gradients, one activation at these steps. The packs of masked texts, which serve all steps, are stored by
``methods.masked_texts``. What comes first, the continuation and the reported functions, takes one pass per token and is
computed again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interpret.attribution.methods.registry import AttributionMethod, How
from interpret.attribution.result.aggregation import HOWS
from interpret.attribution.result.files import array_from_json, array_to_json
from interpret.attribution.result.scores import ScoreArray
from interpret.attribution.steps.step import Step, array
from interpret.storage.parts import UnitParts
from interpret.work.progress import counted

STEPS_A_PART = 16
"""Number of steps that share their forward passes; the passes back are most of the work."""
Scores = dict[str, list[ScoreArray]]
"""Activation, "" for methods on embeddings -> scores of each step, [T] or [T, D]."""


@dataclass(frozen=True)
class TextParts:
    """Where the parts of one text are stored; by default, nowhere."""

    stored: UnitParts = field(default_factory=UnitParts)
    how: How | None = None
    """How the embedding dimension D is reduced, at once, because most of its numbers would be stored for nothing; None:
    it is not reduced."""


def scores_of(
    method: AttributionMethod,
    steps: Sequence[Step],
    layers: Sequence[str],
    options: Mapping[str, Any],
    parts: TextParts,
) -> Scores:
    """Return the scores of all steps of a text; parts that are stored are not computed again.

    Args:
        method: the method.
        steps: steps of one text, in order.
        layers: activation names; empty except for layer methods.
        options: options of the method.
        parts: where parts are stored, and how D is reduced.
    """
    found: Scores = {}
    layers = tuple(layers)
    for name, some, activations in counted(list(_split(method, steps, layers))):
        last = some[-1] is steps[-1] and activations[-1:] == layers[-1:]  # nothing is stored: the whole text follows
        for activation, of_steps in _part(name, method, some, activations, options, parts, keep=not last).items():
            found.setdefault(activation, []).extend(of_steps)
    return found


def _split(
    method: AttributionMethod, steps: Sequence[Step], layers: Sequence[str]
) -> Iterator[tuple[str, Sequence[Step], Sequence[str]]]:
    """Yield the parts of a text: a name, the steps and the activations."""
    size = {"step": 1, "text": len(steps)}.get(method.part, STEPS_A_PART)
    for first in range(0, len(steps), size):
        some = steps[first : first + size]
        name = f"steps {first} to {first + len(some) - 1}"
        if method.part == "activation":
            for activation in layers:
                yield f"{name} {activation}", some, (activation,)
        else:
            yield name, some, layers


def _part(
    name: str,
    method: AttributionMethod,
    steps: Sequence[Step],
    layers: Sequence[str],
    options: Mapping[str, Any],
    parts: TextParts,
    *,
    keep: bool,
) -> Scores:
    """Return the scores of a part: the stored ones, or new ones, which are stored if ``keep``."""
    stored = parts.stored.get(name)
    if stored is not None:
        for step, details in zip(steps, stored["details"], strict=True):
            step.details.update(details)
        return {one: [array_from_json(of_step) for of_step in of_steps] for one, of_steps in stored["scores"].items()}
    found = _computed(method, steps, layers, options)
    if parts.how is not None:
        found = {one: [reduced(each, parts.how) for each in of_steps] for one, of_steps in found.items()}
    if keep:
        scores = {one: [array_to_json(of_step) for of_step in of_steps] for one, of_steps in found.items()}
        parts.stored.keep({name: {"scores": scores, "details": [step.details for step in steps]}})
    return found


def reduced(scores: ScoreArray, how: How) -> ScoreArray:
    """Return scores with the embedding dimension reduced, if they have one: [T] or [T, D] -> [T]."""
    return HOWS[how](scores) if scores.ndim == 2 else scores


def _computed(
    method: AttributionMethod, steps: Sequence[Step], layers: Sequence[str], options: Mapping[str, Any]
) -> Scores:
    if method.layers:
        of_steps = method.fn(steps, layers, **options)
        return {name: [array(one[name]) for one in of_steps] for name in layers}
    found = method.fn(steps, **options) if method.together else [method.fn(step, **options) for step in steps]
    return {"": [array(one) for one in found]}
