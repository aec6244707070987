"""Step functions, which are attributed or reported: functions of the logits that predict a token, [B, V] -> [B].

Logarithms are natural, so entropy and cross-entropy are in nats (Inseq gives cross-entropy in bits). Shapes: B rows
that differ in their embeddings, V vocabulary, N passes with dropout. This module imports no torch, so listing the
functions is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Literal

from interpret.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

Aggregate = Literal["sum", "mean", "product"]
AGGREGATES = ("sum", "mean", "product")
Contrast = Literal["same_context", "own_prefix"]
CONTRASTS: tuple[Contrast, ...] = ("same_context", "own_prefix")


@dataclass(frozen=True)
class StepReading:
    """The predictions of a model for one token: the input of step functions."""

    logits: Tensor
    """[B, V], float32 at least."""
    target: int
    """Id of the token that is predicted."""
    foil: int | None
    """Id of the token it is contrasted with; None without a contrast."""
    foil_logits: Tensor | None
    """[B, V], the logits that predict the foil; ``logits`` themselves if both have the same context."""
    with_dropout: Callable[[int, int], Tensor]
    """(N, seed) -> [N, B, V], the logits of N passes with dropout."""


@dataclass(frozen=True)
class StepFunction:
    """A registered step function."""

    fn: Callable[..., Tensor]
    """Takes a ``StepReading`` and keyword options, returns [B]."""
    unit: str
    aggregate: Aggregate
    """How its values are combined when steps are merged."""
    contrast: bool = False
    """Whether it needs a foil."""
    dropout: bool = False
    """Whether it runs further passes, in training mode."""
    whole: bool = False
    """Whether its sum over all attributed tokens is attributed as one value, which depends on the prompt: methods do
    not change the tokens after it."""

    def options(self) -> dict[str, Any]:
        """Return its options, with their defaults."""
        return keyword_options(self.fn)


def keyword_options(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the keyword-only parameters of a function, with their defaults.

    >>> keyword_options(mc_dropout_mean)
    {'n_mcd_steps': 10, 'seed': 0}
    """
    parameters = signature(fn).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def logit(reading: StepReading) -> Tensor:
    """Return the target's logit."""
    return reading.logits[:, reading.target]


def probability(reading: StepReading) -> Tensor:
    """Return the target's probability."""
    return reading.logits.softmax(-1)[:, reading.target]


def entropy(reading: StepReading) -> Tensor:
    """Return the entropy of the next token, in nats: -sum p ln p."""
    import torch

    log_p = reading.logits.log_softmax(-1)
    return -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)


def cross_entropy(reading: StepReading) -> Tensor:
    """Return -ln p of the target, in nats."""
    return -reading.logits.log_softmax(-1)[:, reading.target]


def answer_log_probability(reading: StepReading) -> Tensor:
    """Return ln p of the target; the sum over the tokens of an answer is ln P(answer | prompt)."""
    return reading.logits.log_softmax(-1)[:, reading.target]


def perplexity(reading: StepReading) -> Tensor:
    """Return 1 / p of the target: exp of the cross-entropy."""
    return cross_entropy(reading).exp()


def contrast_logits(reading: StepReading) -> Tensor:
    """Return the foil's logit."""
    assert reading.foil is not None
    assert reading.foil_logits is not None
    return reading.foil_logits[:, reading.foil]


def contrast_logits_diff(reading: StepReading) -> Tensor:
    """Return logit(target) - logit(foil); Yin and Neubig 2022 (arXiv:2202.10419), section 3."""
    return logit(reading) - contrast_logits(reading)


def contrast_prob_diff(reading: StepReading) -> Tensor:
    """Return P(target) - P(foil); Yin and Neubig 2022 (arXiv:2202.10419), section 3, with probabilities."""
    assert reading.foil is not None
    assert reading.foil_logits is not None
    return probability(reading) - reading.foil_logits.softmax(-1)[:, reading.foil]


def _dropout_probabilities(reading: StepReading, n_mcd_steps: int, seed: int) -> Tensor:
    """Return the target's probability in N passes with dropout, [N, B]."""
    if n_mcd_steps < 2:
        raise InputError(f"n_mcd_steps is {n_mcd_steps}; a standard deviation needs at least 2 passes")
    p = reading.with_dropout(n_mcd_steps, seed).softmax(-1)[:, :, reading.target]
    if p.equal(p[:1].expand_as(p)):
        raise InputError("this model has no dropout: passes in training mode do not differ; use 'probability'")
    return p


def mc_dropout_mean(reading: StepReading, *, n_mcd_steps: int = 10, seed: int = 0) -> Tensor:
    """Return the mean probability of the target under dropout; Gal and Ghahramani 2016 (arXiv:1506.02142)."""
    return _dropout_probabilities(reading, n_mcd_steps, seed).mean(0)


def mc_dropout_std(reading: StepReading, *, n_mcd_steps: int = 10, seed: int = 0) -> Tensor:
    """Return the standard deviation of the target's probability under dropout, with N - 1 in the denominator."""
    return _dropout_probabilities(reading, n_mcd_steps, seed).std(0)


def mc_dropout_z(reading: StepReading, *, n_mcd_steps: int = 10, seed: int = 0) -> Tensor:
    """Return (p - mean) / standard deviation: the z-score of the probability without dropout among those with it."""
    p = _dropout_probabilities(reading, n_mcd_steps, seed)
    return (probability(reading) - p.mean(0)) / p.std(0)


FUNCTIONS: dict[str, StepFunction] = {
    "logit": StepFunction(logit, "logit", "sum"),
    "probability": StepFunction(probability, "probability", "product"),
    "entropy": StepFunction(entropy, "nats", "sum"),
    "cross_entropy": StepFunction(cross_entropy, "nats", "sum"),
    "answer_log_probability": StepFunction(answer_log_probability, "nats", "sum", whole=True),
    "perplexity": StepFunction(perplexity, "1 / probability", "product"),
    "contrast_prob_diff": StepFunction(contrast_prob_diff, "probability difference", "sum", contrast=True),
    "contrast_logits": StepFunction(contrast_logits, "logit", "sum", contrast=True),
    "contrast_logits_diff": StepFunction(contrast_logits_diff, "logit difference", "sum", contrast=True),
    "mc_dropout_mean": StepFunction(mc_dropout_mean, "probability", "product", dropout=True),
    "mc_dropout_std": StepFunction(mc_dropout_std, "probability", "mean", dropout=True),
    "mc_dropout_z": StepFunction(mc_dropout_z, "standard deviations", "mean", dropout=True),
}
"""All step functions by name; ``register_step_function`` adds to them."""
SPELLINGS: dict[str, tuple[str, ...]] = {
    "crossentropy": ("cross_entropy",),
    # In Inseq this is the z-score; here the name means the mean if it is the attributed function.
    "mc_dropout_prob_avg": ("mc_dropout_mean", "mc_dropout_std", "mc_dropout_z"),
}
"""Inseq's names -> names here; as a step score, a name stands for all of them."""
BUILT_IN = frozenset([*FUNCTIONS, *SPELLINGS])
"""Names that cannot be registered again."""


def attributed_function(name: str) -> str:
    """Return the name of a function to attribute, which may be given by Inseq's name.

    Raises:
        InputError: if the name is unknown.
    """
    return step_functions([name])[0]


def step_functions(names: Sequence[str]) -> list[str]:
    """Return the names of functions, which may be given by Inseq's names, without duplicates.

    Raises:
        InputError: if a name is unknown, or is not a name but a function.
    """
    found: list[str] = []
    for name in names:
        if callable(name):
            raise InputError(
                f"{_name_of(name)!r} is a function, but tables record names: register it by register_step_function, "
                "and give its name"
            )
        if name not in FUNCTIONS and name not in SPELLINGS:
            raise InputError(unknown("step function", name, [*FUNCTIONS, *SPELLINGS]))
        found += SPELLINGS.get(name, (name,))
    return list(dict.fromkeys(found))


def chosen_functions(
    chosen: Sequence[str | Callable[..., Tensor]], *, with_foils: bool = False
) -> dict[str, StepFunction]:
    """Return functions by name, without duplicates.

    Args:
        chosen: names, ours or Inseq's, or functions as ``register_step_function`` takes them, which are named by
            their ``__name__``, have no unit and are averaged when steps are merged.
        with_foils: whether contrast targets are given; such a function may then use the foil.

    Raises:
        InputError: if a name is unknown, or two functions have the same name.
    """
    found: dict[str, StepFunction] = {}
    for one in chosen:
        if not callable(one):
            found |= {name: FUNCTIONS[name] for name in step_functions([one])}
            continue
        name = _name_of(one)
        _check_parameters(one, name)
        known = found.get(name) or FUNCTIONS.get(name)
        if name in SPELLINGS or (known is not None and known.fn is not one):
            raise InputError(f"another step function has the name {name!r}; rename yours")
        found[name] = known or StepFunction(one, "", "mean", contrast=with_foils)
    return found


def _name_of(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


def list_step_functions() -> list[str]:
    """Return the names of all functions that can be attributed or reported.

    >>> list_step_functions()[:3]
    ['logit', 'probability', 'entropy']
    """
    return list(FUNCTIONS)


def value_of(fn: Callable[..., Tensor], name: str, reading: StepReading) -> Tensor:
    """Return the values of a function for a reading, [B].

    Raises:
        InputError: if the function returns anything else.
    """
    from torch import Tensor

    value = fn(reading)
    rows = len(reading.logits)
    if isinstance(value, Tensor) and value.shape == (rows,):
        return value
    found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
    raise InputError(
        f"step function {name!r} returned {found}; expected a tensor of shape [{rows}]: one value per row of "
        f"reading.logits, whose shape is {list(reading.logits.shape)}"
    )


def _check_parameters(fn: Callable[..., Tensor], name: str) -> None:
    """Check that a function takes a reading, and that its other parameters are keyword-only with defaults."""
    parameters = list(signature(fn).parameters.values())
    if not parameters or parameters[0].kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD):
        raise InputError(f"step function {name!r} does not take a reading; define it as def fn(reading)")
    for each in parameters[1:]:
        rest = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)  # *args, **kwargs
        if not rest and (each.kind is not each.KEYWORD_ONLY or each.default is each.empty):
            raise InputError(
                f"step function {name!r} has the parameter {each.name!r}; options must be keyword-only and have a "
                f"default, as in def fn(reading, *, {each.name}=1)"
            )


def register_step_function(
    fn: Callable[..., Tensor],
    identifier: str,
    *,
    aggregate: Aggregate = "mean",
    unit: str = "",
    contrast: bool = False,
    overwrite: bool = False,
) -> None:
    """Register your own step function under a name, in this process.

    Args:
        fn: takes a ``StepReading`` and keyword-only options with defaults, as in ``def fn(reading, *, power=2)``;
            returns [B], one value per row of ``reading.logits``. It must be differentiable to be attributed by a
            gradient method.
        identifier: a new name.
        aggregate: how its values are combined when steps are merged: ``sum``, ``mean`` or ``product``.
        unit: unit of its values, for the output.
        contrast: whether it uses ``foil`` and ``foil_logits``.
        overwrite: replace a function registered before under this name, as when a notebook cell is run again.

    Raises:
        InputError: if the name is taken, the parameters are not as above, or ``aggregate`` is unknown.

    >>> register_step_function(lambda reading: reading.logits.max(-1).values, "best_logit")
    >>> list_step_functions()[-1]
    'best_logit'
    >>> del FUNCTIONS["best_logit"]
    """
    if identifier in BUILT_IN or (identifier in FUNCTIONS and not overwrite):
        way_out = "choose another name" if identifier in BUILT_IN else "choose another name, or give overwrite=True"
        raise InputError(f"step function {identifier!r} already exists; {way_out}")
    if aggregate not in AGGREGATES:
        raise InputError(unknown("aggregate", aggregate, AGGREGATES))
    _check_parameters(fn, identifier)
    FUNCTIONS[identifier] = StepFunction(fn, unit, aggregate, contrast)
