"""Lenses: ways to read a distribution over the next token from a state inside a model.

============  =====================================================================================================
``logit``     final norm and unembedding, applied to the state (nostalgebraist 2020, "interpreting GPT")
``tuned``     the same, after an affine map that was trained for the layer (Belrose et al. 2023, arXiv 2303.08112)
``identity``  the state replaces the last token of a prompt that repeats tokens, at its own layer, and the layers from
              there on read it (token identity patchscope: Ghandeharioun et al. 2024, arXiv 2401.06102, section 4.1)
============  =====================================================================================================

Every lens gives the model's own logits for the state after the last layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import anatomy_of, check_evaluating, check_head, check_length, check_logits
from interpret.engine.trunk import Exit, exit_of
from interpret.errors import InputError, unknown
from interpret.probing.lens_maps import TunedLens, check_shape
from interpret.probing.registry import IDENTITY, LENSES, LOGIT, TUNED
from interpret.prompts.encoding import token_ids
from interpret.slots.decoding import Primed, prime
from interpret.slots.next_token import next_logits
from interpret.slots.whole_passes import WholePrimed

IDENTITY_PROMPT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
"""The prompt of the token identity patchscope; the state replaces its last token."""


class Lens(Protocol):
    """Reads states as distributions over the next token."""

    def logits(self, layer: int, states: Tensor) -> Tensor:
        """Return logits, [N, V], at least float32, for states that have passed ``layer`` layers, [N, D]; 0 to L."""


@dataclass(frozen=True)
class LogitLens:
    """Final norm and unembedding."""

    end: Exit

    def logits(self, layer: int, states: Tensor) -> Tensor:
        """Return the logits of states, [N, D] -> [N, V]; they do not depend on the layer."""
        return self.end.logits(states.to(self.end.device))


@dataclass(frozen=True)
class MappedLens:
    """The affine map of a layer, then final norm and unembedding."""

    end: Exit
    maps: TunedLens
    n_layers: int

    def logits(self, layer: int, states: Tensor) -> Tensor:
        """Return the logits of states, [N, D] -> [N, V]; the state after the last layer has no map."""
        states = states.to(self.end.device)
        return self.end.logits(states if layer == self.n_layers else self.maps.translated(layer, states))


@dataclass(frozen=True)
class IdentityLens:
    """A prompt that repeats tokens, whose last token is replaced by the state."""

    end: Exit
    primed: Primed | WholePrimed
    n_layers: int

    def logits(self, layer: int, states: Tensor) -> Tensor:
        """Return the logits of states, [N, D] -> [N, V]; no layer reads the state after the last one."""
        if layer == self.n_layers:
            return self.end.logits(states.to(self.end.device))
        return next_logits(self.primed, layer, states)


@dataclass(frozen=True)
class _IdentityPrompt:
    """The tokens of ``IDENTITY_PROMPT``."""

    ids: tuple[int, ...]
    name: str = "token identity"

    @property
    def slots(self) -> tuple[int, ...]:
        """The last token."""
        return (len(self.ids) - 1,)


def logit_lens_of(model: PreTrainedModel) -> LogitLens:
    """Return the logit lens of a model.

    Raises:
        UnsupportedModelError: if the model's family is not supported, or logits from its states are not its own.
    """
    check_head(model)
    return LogitLens(exit_of(model))


def mapped_lens_of(model: PreTrainedModel, maps: TunedLens) -> MappedLens:
    """Return a tuned lens of a model.

    Raises:
        InputError: if the maps do not fit the model.
        UnsupportedModelError: as ``logit_lens_of``.
    """
    check_shape(model, maps)
    end = logit_lens_of(model).end
    here = TunedLens(maps.weight.to(end.device), maps.bias.to(end.device))
    return MappedLens(end, here, len(anatomy_of(model).layers))


def identity_lens_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> IdentityLens:
    """Return the token identity patchscope of a model.

    Raises:
        InputError: if the model is in training mode.
        UnsupportedModelError: as ``logit_lens_of``, and if states cannot be inserted into the model.
    """
    check_evaluating(model)
    check_logits(model)
    prompt = _IdentityPrompt(token_ids(tokenizer, IDENTITY_PROMPT))
    check_length(model, "the prompt of the identity lens", len(prompt.ids), 1)
    return IdentityLens(exit_of(model), prime(model, prompt, 1), len(anatomy_of(model).layers))


def check_lenses(lenses: Sequence[str], *, tuned: object) -> None:
    """Check names of lenses, and that a trained lens is given if, and only if, one is read.

    Raises:
        InputError: for an unknown or repeated name, or without the maps of a tuned lens.
    """
    for lens in lenses:
        if lens not in LENSES:
            raise InputError(unknown("lens", lens, LENSES))
    if not lenses or len(set(lenses)) < len(lenses):
        raise InputError(f"lenses are {', '.join(lenses) or 'none'}; name one or several, each once")
    if (TUNED in lenses) != (tuned is not None):
        raise InputError(
            "the lens 'tuned' and the folder of its maps belong together: give --lens tuned with --tuned and the "
            "folder of 'interpret probe train-lens'"
        )


def lenses_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lenses: Sequence[str], maps: TunedLens | None
) -> Mapping[str, Lens]:
    """Return lenses by their names, which have been checked.

    Raises:
        InputError: if the maps do not fit the model.
        UnsupportedModelError: if the model cannot be read by one of them.
    """
    found: dict[str, Lens] = {}
    for name in lenses:
        if name == LOGIT:
            found[name] = logit_lens_of(model)
        elif name == IDENTITY:
            found[name] = identity_lens_of(model, tokenizer)
        else:
            assert maps is not None
            found[name] = mapped_lens_of(model, maps)
    return found


def divergence(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats, [N]: with p of the model and q of a lens, how much the lens misses.

    Args:
        p: [N, V] probabilities.
        log_p: [N, V] their logarithms.
        log_q: [N, V] logarithms of the other probabilities.
    """
    # A token that p excludes adds nothing, also where q excludes it as well: -inf - -inf is NaN.
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1)
