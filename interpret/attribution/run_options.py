"""The options of an attribution run, shared by ``run`` and the command, and their defaults. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interpret.attribution.steps.functions import CONTRASTS
from interpret.errors import InputError
from interpret.prompts.prompts import MODEL_TEMPLATE

BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of an attribution run, written as on the command line; the manifest records them unchanged."""

    source_language: str | None = None
    """For M2M100 and NLLB: the language code of the prompts."""
    target_language: str | None = None
    """For translation models: the language code of the targets."""
    method: str = "input_x_gradient"
    compare: Sequence[str] | None = None
    """Methods that are compared, in place of ``method``."""
    versus: str | None = None
    """Another prompt, whose scores are subtracted after both are aligned; for a single prompt."""
    attributed_fn: str | None = None
    """None: ``contrast_prob_diff`` if every prompt has a foil, else ``probability``."""
    contrast: str = CONTRASTS[0]
    """The context of the foil: ``same_context`` or ``own_prefix``, see ``attribute``."""
    align: str | None = None
    """``"0:0,2:1"``: pairs (step of the target, step of the foil)."""
    steps: str = ":"
    """``"first:end"``: a slice of the tokens after the prompt."""
    new_tokens: int = 20
    """Maximum number of tokens generated for a prompt without a target."""
    step_scores: Sequence[str] | None = None
    """Functions to report for each step, besides the attributed one."""
    layers: str | None = None
    """``"3,7"``, ``"0:20:5"``, or activation names; None: all layers, for ``attention`` the last."""
    groups: Sequence[str] | None = None
    """Tokens that are masked together: a unit, a template, or parts of every prompt."""
    options: Sequence[str] | None = None
    """Options of the method and the functions, such as ``"n_steps=20"``."""
    aggregate: str | None = None
    """How the embedding dimension is reduced; None: as the method does by default."""
    normalize: bool = False
    """Whether the scores of a step are divided by the sum of their absolute values."""
    subwords: bool = False
    """Whether scores are summed over the tokens of each word."""
    chat_template: str = MODEL_TEMPLATE
    """Chat template of prompts that are not raw."""


def align_words(align: str | Sequence[tuple[int, int]] | None) -> str | None:
    """Return an alignment as it is written on the command line.

    >>> align_words([(0, 0), (2, 1)])
    '0:0,2:1'
    """
    if align is None or isinstance(align, str):
        return align
    return ",".join(f"{step}:{of_foil}" for step, of_foil in align)


def steps_words(steps: str | tuple[int | None, int | None]) -> str:
    """Return a slice of steps as it is written on the command line.

    >>> steps_words((0, None))
    '0:'
    """
    return steps if isinstance(steps, str) else ":".join("" if bound is None else str(bound) for bound in steps)


def layers_words(layers: str | int | Sequence[int | str] | None) -> str | None:
    """Return a choice of layers as it is written on the command line.

    Raises:
        InputError: if it is something else, such as a module of the model.

    >>> layers_words([3, "mlp_out"])
    '3,mlp_out'
    """
    if layers is None or isinstance(layers, str):
        return layers
    listed = list(layers) if isinstance(layers, Sequence) else [layers]
    for layer in listed:
        if not isinstance(layer, (int, str)):
            raise InputError(f"layers: a {type(layer).__name__} is not a layer; give numbers, or names of activations")
    return ",".join(map(str, listed))


def compare_words(compare: str | Sequence[str] | None) -> list[str] | None:
    """Return the names of methods that may be written on the command line, with commas.

    >>> compare_words("saliency,lime")
    ['saliency', 'lime']
    """
    if compare is None:
        return None
    return [name.strip() for name in compare.split(",")] if isinstance(compare, str) else list(compare)


def groups_words(groups: str | Sequence[str] | None) -> list[str] | None:
    """Return groups of tokens as they are written on the command line.

    >>> groups_words("sentences")
    ['sentences']
    """
    return None if groups is None else [groups] if isinstance(groups, str) else list(groups)


def options_words(options: Mapping[str, Any] | Sequence[str] | None) -> list[str] | None:
    """Return options of a method as they are written on the command line.

    >>> options_words({"n_steps": 20, "baseline": "mean"})
    ['n_steps=20', 'baseline=mean']
    """
    if not options:
        return None
    if isinstance(options, Mapping):
        return [f"{name}={value}" for name, value in options.items()]
    return list(options)
