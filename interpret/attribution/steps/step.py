"""One step of an attribution: a token, the text before it, and its attributed value as a function of the embeddings.

Every method works on ``Step``. Shapes: B rows that differ in their embeddings, T tokens of the text before the
step's token, D hidden width, V vocabulary, H heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import (
    anatomy_of,
    base_of,
    embedding_table,
    input_device,
    keeping_activations,
    last_attention_only,
    logits_of,
    reporting_attention,
    word_embeddings,
)
from interpret.anatomy.passes import grad_mode, in_modes
from interpret.attribution.result.scores import ScoreArray
from interpret.attribution.steps.functions import StepReading
from interpret.device import sent
from interpret.errors import InputError, unknown
from interpret.prompts.spelling import pieces
from interpret.prompts.vocabulary import special_ids
from interpret.storage.parts import UnitParts

Baseline = Literal["zero", "mean", "pad", "unk", "bos", "eos"] | int
BASELINES = ("zero", "mean", "pad", "unk", "bos", "eos")


@dataclass(frozen=True)
class Foil:
    """The token the target is contrasted with."""

    id: int
    prefix: tuple[int, ...] | None
    """The tokens before it, if it is predicted from its own text; None if from the target's text."""


@dataclass
class Room:
    """The settings found to fit in memory for one text; shared by all its steps."""

    rows: int | None = None
    """Rows per batch; None: the batch size of the step."""
    checkpointing: bool = False
    """Whether gradient checkpointing is on: the backward pass runs each layer again."""


@dataclass(frozen=True)
class Step:
    """One attributed token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ids: tuple[int, ...]
    """[T], the tokens before the attributed one: the prompt and the continuation so far."""
    target: int
    """Id of the attributed token."""
    foil: Foil | None
    function: Callable[[StepReading], Tensor]
    """The attributed function, with its options: -> [B]."""
    batch_size: int
    """Maximum number of rows a method runs in one batch."""
    room: Room = field(default_factory=Room)
    stored: UnitParts = field(default_factory=UnitParts)
    """The parts of the text's attribution that are stored; methods whose passes serve all steps store them here."""
    groups: tuple[tuple[int, int], ...] | None = None
    """The tokens that methods may change, as ranges (first, one past the last) that are masked together; all others
    keep their embeddings. None: all tokens, each masked alone."""
    one_trunk: ClassVar[bool] = True
    """Whether one stack of layers reads the whole text."""
    details: dict[str, float] = field(default_factory=dict)
    """Diagnostics of the method at this step, such as the quality of a fit; methods write them here."""

    @cached_property
    def embeddings(self) -> Tensor:
        """The word embeddings of ``ids``, [1, T, D], detached."""
        return embed(self.model, self.ids)

    @cached_property
    def special(self) -> Tensor:
        """[T] bool: which tokens are special tokens, such as ``<s>``."""
        special = special_ids(self.tokenizer, self.ids)
        return torch.tensor([token in special for token in self.ids], device=self.embeddings.device)

    @cached_property
    def features(self) -> Tensor:
        """[F, T] bool on the CPU: the tokens of each feature, which are masked together."""
        columns = torch.arange(len(self.ids))
        firsts, ends = (columns, columns + 1) if self.groups is None else torch.tensor(self.groups).T
        return (firsts[:, None] <= columns) & (columns < ends[:, None])

    @cached_property
    def kept(self) -> Tensor:
        """[T] bool: which tokens methods must not change."""
        return sent(~self.features.any(0), self.embeddings.device)

    def at_tokens(self, scores: Tensor) -> Tensor:
        """Return the scores of features, [F], at the first token of each, [T] with zeros elsewhere."""
        first = self.features.int().argmax(1)
        return scores.new_zeros(len(self.ids)).index_put((first,), scores)

    def layers(self) -> Sequence[nn.Module]:
        """Return the layers of the model.

        Raises:
            UnsupportedModelError: if the model is not of a supported family.
        """
        return anatomy_of(self.model).layers

    def value(self, embeddings: Tensor) -> Tensor:
        """Return the attributed value for given embeddings of the text: [B, T, D] -> [B], differentiable."""
        return self.read(self.logits(embeddings), embeddings)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the next-token logits for embeddings of any text, [B, T, D] -> [B, V]."""
        return self.head(self.states(embeddings)[:, -1])  # only the last column is unembedded

    def states(self, embeddings: Tensor) -> Tensor:
        """Return the final hidden state at each token, [B, T, D], for embeddings without padding."""
        return hidden_states(self.model, embeddings)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of final hidden states, [..., D] -> [..., V], in float32 or higher precision."""
        return head(self.model, states)

    @torch.no_grad()
    def attentions(self) -> list[Tensor]:
        """Return what the last token of the text attends to, [H, T] per layer, on the device of the layer."""
        with reporting_attention(self.model), last_attention_only(self.model):
            output = base_of(self.model)(inputs_embeds=self.embeddings.clone(), output_attentions=True, use_cache=False)
        return [weights[0, :, -1] for weights in output.attentions]

    def read(self, logits: Tensor, embeddings: Tensor) -> Tensor:
        """Return the attributed value, given the logits of the text's own pass.

        Args:
            logits: [B, V], the next-token logits after the text.
            embeddings: [B, T, D] of the text; used for further passes, such as the one over the foil's own text.
        """
        return self.function(self.reading(logits, embeddings))

    def reading(self, logits: Tensor, embeddings: Tensor) -> StepReading:
        """Return the input of step functions at this step; the arguments are those of ``read``."""
        foil = None if self.foil is None else self.foil.id
        foil_logits = None if self.foil is None else self._foil_logits(self.foil, logits, embeddings)
        return StepReading(logits, self.target, foil, foil_logits, cache(partial(self._with_dropout, embeddings)))

    def baseline(self, choice: Baseline) -> Tensor:
        """Return the embeddings of a baseline, which stands for the absence of a text, [1, T, D].

        Tokens that methods must not change (``kept``) have their own embeddings there.

        Args:
            choice: ``zero``: zeros. ``mean``: the mean of the vocabulary's embeddings. ``pad``, ``unk``, ``bos``,
                ``eos``: the embedding of that token of the tokenizer. A number: the embedding of
                the token with this id.

        Raises:
            InputError: for another choice, or a token the tokenizer does not have.
        """
        return torch.where(self.kept[:, None], self.embeddings, self._absence(choice))

    def _absence(self, choice: Baseline) -> Tensor:
        if choice == "zero":
            return torch.zeros_like(self.embeddings)
        if choice == "mean":
            return embedding_table(self.model).mean(0).expand_as(self.embeddings)
        token = choice if isinstance(choice, int) else self._special_id(choice)
        return embed(self.model, [token] * len(self.ids))

    def _special_id(self, choice: str) -> int:
        if choice not in BASELINES:
            raise InputError(unknown("baseline", choice, BASELINES))
        token = getattr(self.tokenizer, f"{choice}_token_id")
        if token is None:
            raise InputError(f"baseline {choice!r}: this tokenizer has no such token; use 'zero', 'mean' or a token id")
        return token

    def _foil_logits(self, foil: Foil, logits: Tensor, embeddings: Tensor) -> Tensor:
        """Return the logits that predict the foil, [B, V].

        If the foil has its own text, both texts share the embeddings of their common prefix, so that a change of the
        prompt changes both. If the texts before target and foil are equal, these are the logits of the text's own pass.
        """
        if foil.prefix is None or foil.prefix == self.ids:
            return logits
        pairs = zip(foil.prefix, self.ids, strict=False)
        common = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(foil.prefix), len(self.ids)))
        own = embed(self.model, foil.prefix)[:, common:].expand(len(embeddings), -1, -1)
        return self.logits(torch.cat([embeddings[:, :common], own], dim=1))

    def _with_dropout(self, embeddings: Tensor, n: int, seed: int) -> Tensor:
        """Return the logits of n passes in training mode, [N, B, V]."""
        with dropping_out(self.model, seed):
            return torch.stack([self.logits(embeddings) for _ in range(n)])


def embed(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the word embeddings of one text, [1, T, D], detached."""
    with grad_mode(False):
        return word_embeddings(model, torch.tensor([list(ids)], device=input_device(model)))


def hidden_states(model: PreTrainedModel, embeddings: Tensor) -> Tensor:
    """Return the final hidden states, which are unembedded, [B, T, D], for embeddings without padding."""
    # A copy, because some models (CTRL) scale the embeddings that they are given in place.
    return base_of(model)(inputs_embeds=embeddings.clone(), use_cache=False)[0]


def head(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits of final hidden states, in float32 or higher precision: [..., D] -> [..., V]."""
    logits = logits_of(model, states)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def dropping_out(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Put a model into training mode inside the ``with`` block, and restore the mode of each module afterwards.

    Random numbers inside the block are drawn from the seed; the state of the global generators is restored.
    """
    training = [(module, True) for module in model.modules()]
    with keeping_activations(model), torch.random.fork_rng(), in_modes(training):
        torch.manual_seed(seed)
        yield


def gathered_details(steps: Sequence[Step]) -> dict[str, ScoreArray]:
    """Return the diagnostics of the method by name, [G] each; NaN at steps without one."""
    names = dict.fromkeys(name for step in steps for name in step.details)
    return {name: np.array([step.details.get(name, np.nan) for step in steps]) for name in names}


def foil_tokens(steps: Sequence[Step]) -> tuple[str, ...] | None:
    """Return the foil token of each step, [G]; None without a contrast."""
    ids = [step.foil.id for step in steps if step.foil is not None]
    return tuple(pieces(steps[0].tokenizer, ids)) if ids else None


def array(values: Tensor) -> ScoreArray:
    """Return a tensor as a NumPy array, in float32 or higher precision."""
    return values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32)).numpy()
