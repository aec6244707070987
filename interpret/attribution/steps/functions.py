"""What of a step is attributed or reported: functions of the logits before a token, [B, V] -> [B].

Logarithms are natural, so entropy and cross-entropy are in nats (Inseq gave cross-entropy in bits). Letters: B rows
that differ in their embeddings, V size of the vocabulary, N passes with dropout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import Tensor

from interpret.errors import InputError, unknown

Aggregate = Literal["sum", "mean", "product"]
AGGREGATES = ("sum", "mean", "product")
Contrast = Literal["same_context", "own_prefix"]
CONTRASTS: tuple[Contrast, ...] = ("same_context", "own_prefix")


@dataclass(frozen=True)
class StepReading:
    """What a model says before one token."""

    logits: Tensor
    """[B, V], float32 at least."""
    target: int
    """The token whose turn it is."""
    foil: int | None
    """The token it is held against; None without a contrast."""
    foil_logits: Tensor | None
    """[B, V] the foil is read from: ``logits`` themselves where both have the same context."""
    with_dropout: Callable[[int, int], Tensor]
    """(N, seed) -> [N, B, V], logits of N passes with the model's dropout."""


@dataclass(frozen=True)
class StepFunction:
    """One function, as it is registered."""

    fn: Callable[..., Tensor]
    """Takes a ``StepReading`` and keyword options, returns [B]."""
    unit: str
    aggregate: Aggregate
    """How its values are merged where steps are."""
    contrast: bool = False
    """Whether it needs a foil."""
    dropout: bool = False
    """Whether it runs the model again, in training mode."""

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
    log_p = reading.logits.log_softmax(-1)
    return -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)


def cross_entropy(reading: StepReading) -> Tensor:
    """Return -ln p of the target, in nats."""
    return -reading.logits.log_softmax(-1)[:, reading.target]


def perplexity(reading: StepReading) -> Tensor:
    """Return 1 / p of the target: exp of the cross-entropy."""
    return cross_entropy(reading).exp()


def contrast_prob_diff(reading: StepReading) -> Tensor:
    """Return P(target) - P(foil); Yin and Neubig 2022 (arXiv:2202.10419), section 3, with probabilities."""
    assert reading.foil is not None
    assert reading.foil_logits is not None
    return probability(reading) - reading.foil_logits.softmax(-1)[:, reading.foil]


def _dropout_probabilities(reading: StepReading, n_mcd_steps: int, seed: int) -> Tensor:
    """Return the target's probability in N passes with dropout, [N, B]."""
    if n_mcd_steps < 2:
        raise InputError(f"n_mcd_steps is {n_mcd_steps}; a deviation needs at least 2 passes")
    p = reading.with_dropout(n_mcd_steps, seed).softmax(-1)[:, :, reading.target]
    if torch.equal(p, p[:1].expand_as(p)):
        raise InputError("this model has no dropout: passes in training mode do not differ; use 'probability'")
    return p


def mc_dropout_mean(reading: StepReading, *, n_mcd_steps: int = 10, seed: int = 0) -> Tensor:
    """Return the mean probability of the target under dropout; Gal and Ghahramani 2016 (arXiv:1506.02142)."""
    return _dropout_probabilities(reading, n_mcd_steps, seed).mean(0)


def mc_dropout_std(reading: StepReading, *, n_mcd_steps: int = 10, seed: int = 0) -> Tensor:
    """Return the standard deviation (N - 1) of the target's probability under dropout."""
    return _dropout_probabilities(reading, n_mcd_steps, seed).std(0)


def mc_dropout_z(reading: StepReading, *, n_mcd_steps: int = 10, seed: int = 0) -> Tensor:
    """Return (p - mean) / deviation: how unusual the probability without dropout is among those with it."""
    p = _dropout_probabilities(reading, n_mcd_steps, seed)
    return (probability(reading) - p.mean(0)) / p.std(0)


FUNCTIONS: dict[str, StepFunction] = {
    "logit": StepFunction(logit, "logit", "sum"),
    "probability": StepFunction(probability, "probability", "product"),
    "entropy": StepFunction(entropy, "nats", "sum"),
    "cross_entropy": StepFunction(cross_entropy, "nats", "sum"),
    "perplexity": StepFunction(perplexity, "1 / probability", "product"),
    "contrast_prob_diff": StepFunction(contrast_prob_diff, "probability difference", "sum", contrast=True),
    "mc_dropout_mean": StepFunction(mc_dropout_mean, "probability", "product", dropout=True),
    "mc_dropout_std": StepFunction(mc_dropout_std, "probability", "mean", dropout=True),
    "mc_dropout_z": StepFunction(mc_dropout_z, "standard deviations", "mean", dropout=True),
}
"""All that can be asked for; ``register_step_function`` adds to them."""
SPELLINGS: dict[str, tuple[str, ...]] = {
    "crossentropy": ("cross_entropy",),
    # Inseq gives the z score under this name; here the name gives the mean where one function is wanted.
    "mc_dropout_prob_avg": ("mc_dropout_mean", "mc_dropout_std", "mc_dropout_z"),
}
"""Inseq's names -> ours; as a step score, a name stands for all of them."""
BUILT_IN = frozenset([*FUNCTIONS, *SPELLINGS])
"""Names that are not to be taken."""


def attributed_function(name: str) -> str:
    """Return our name of a function to attribute.

    Raises:
        InputError: if there is none of this name.
    """
    return step_functions([name])[0]


def step_functions(names: Sequence[str]) -> list[str]:
    """Return our names of the functions that are asked for, each once.

    Raises:
        InputError: for a name that does not exist.
    """
    found: list[str] = []
    for name in names:
        if name not in FUNCTIONS and name not in SPELLINGS:
            raise InputError(unknown("step function", name, [*FUNCTIONS, *SPELLINGS]))
        found += SPELLINGS.get(name, (name,))
    return list(dict.fromkeys(found))


def list_step_functions() -> list[str]:
    """Return the names of all functions that can be attributed or reported.

    >>> list_step_functions()[:3]
    ['logit', 'probability', 'entropy']
    """
    return list(FUNCTIONS)


def value_of(fn: Callable[..., Tensor], name: str, reading: StepReading) -> Tensor:
    """Return what a function says of a reading, [B].

    Raises:
        InputError: if it returns anything else.
    """
    value = fn(reading)
    rows = len(reading.logits)
    if isinstance(value, Tensor) and value.shape == (rows,):
        return value
    found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
    raise InputError(
        f"step function {name!r} returned {found}; expected a tensor of shape [{rows}]: a value for each row of "
        f"reading.logits, which is {list(reading.logits.shape)}"
    )


def _check_parameters(fn: Callable[..., Tensor], name: str) -> None:
    """Refuse a function that could not be called with a reading alone, or has options nobody could give."""
    parameters = list(signature(fn).parameters.values())
    if not parameters or parameters[0].kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD):
        raise InputError(f"step function {name!r} cannot be given a reading; write it as def fn(reading)")
    for each in parameters[1:]:
        rest = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)  # *args, **kwargs
        if not rest and (each.kind is not each.KEYWORD_ONLY or each.default is each.empty):
            raise InputError(
                f"step function {name!r} has the parameter {each.name!r}; options are keyword-only and have a "
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
    """Make a function of one's own known under a name, for this process.

    Args:
        fn: takes a ``StepReading`` and options, keyword-only ones with defaults, as in ``def fn(reading, *, power=2)``;
            returns [B], a value for each row of ``reading.logits``; differentiable where it is to be attributed by a
            gradient method.
        identifier: a new name.
        aggregate: how its values are merged where steps are: ``sum``, ``mean`` or ``product``.
        unit: of its values, for the output.
        contrast: whether it reads ``foil`` and ``foil_logits``.
        overwrite: replace a function of this name that was registered before, as when a notebook's cell is run again.

    Raises:
        InputError: for a name that is taken, a function with other parameters, or an unknown ``aggregate``.

    >>> register_step_function(lambda reading: reading.logits.max(-1).values, "best_logit")
    >>> list_step_functions()[-1]
    'best_logit'
    >>> del FUNCTIONS["best_logit"]
    """
    if identifier in BUILT_IN or (identifier in FUNCTIONS and not overwrite):
        way_out = "choose another name" if identifier in BUILT_IN else "choose another name, or give overwrite=True"
        raise InputError(f"there is a step function {identifier!r} already; {way_out}")
    if aggregate not in AGGREGATES:
        raise InputError(unknown("aggregate", aggregate, AGGREGATES))
    _check_parameters(fn, identifier)
    FUNCTIONS[identifier] = StepFunction(fn, unit, aggregate, contrast)
