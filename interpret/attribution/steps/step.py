"""One step of an attribution: a token, the text before it, and what is attributed as a function of its embeddings.

Every method works on ``Step``. Letters: B rows that differ in their embeddings, T tokens of the text before the
step's token, D width of an embedding, V size of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Literal

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
)
from interpret.attribution.result.scores import ScoreArray
from interpret.attribution.steps.functions import StepReading
from interpret.errors import InputError, unknown

Baseline = Literal["zero", "mean", "pad", "unk", "bos", "eos"] | int
BASELINES = ("zero", "mean", "pad", "unk", "bos", "eos")


@dataclass(frozen=True)
class Foil:
    """What the target is held against."""

    id: int
    prefix: tuple[int, ...] | None
    """The tokens before it, where it is read in a text of its own; None where it is read in the target's."""


@dataclass
class Room:
    """What fits in memory while one text is attributed, learnt by trying; its steps share it."""

    rows: int | None = None
    """So many rows at once; None: as many as were asked for."""
    checkpointing: bool = False
    """Whether layers keep nothing for backward, and are run again there."""


@dataclass(frozen=True)
class Step:
    """One attributed token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ids: tuple[int, ...]
    """[T], the text before the token: prompt and what was written since."""
    target: int
    foil: Foil | None
    function: Callable[[StepReading], Tensor]
    """What is attributed, with its options: -> [B]."""
    batch_size: int
    """Rows a method may put through the model side by side."""
    room: Room = field(default_factory=Room)
    details: dict[str, float] = field(default_factory=dict)
    """What a method says about itself at this step; it may write here."""

    @cached_property
    def embeddings(self) -> Tensor:
        """The word embeddings of ``ids``, [1, T, D], without a graph."""
        return embed(self.model, self.ids)

    @cached_property
    def special(self) -> Tensor:
        """[T] bool: which tokens are special ones, such as ``<s>``."""
        special = set(self.tokenizer.all_special_ids)
        return torch.tensor([token in special for token in self.ids], device=self.embeddings.device)

    def layers(self) -> Sequence[nn.Module]:
        """Return the layers of the model.

        Raises:
            UnsupportedModelError: if it is of no known family.
        """
        return anatomy_of(self.model).layers

    def value(self, embeddings: Tensor) -> Tensor:
        """Return what is attributed, for other embeddings of the text: [B, T, D] -> [B], differentiable."""
        return self.read(self.logits(embeddings), embeddings)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logits of the next token after embeddings of any text, [B, T, D] -> [B, V]."""
        return self.head(self.states(embeddings)[:, -1])  # the head reads one column only

    def states(self, embeddings: Tensor) -> Tensor:
        """Return what the head reads after each token that is read in order, [B, T, D], without padding."""
        return hidden_states(self.model, embeddings)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits for such states, [..., D] -> [..., V], float32 at least."""
        return head(self.model, states)

    @torch.no_grad()
    def attentions(self) -> list[Tensor]:
        """Return where the last token of the text looks, [H, T] of each layer, on its device."""
        with reporting_attention(self.model), last_attention_only(self.model):
            output = base_of(self.model)(inputs_embeds=self.embeddings, output_attentions=True, use_cache=False)
        return [weights[0, :, -1] for weights in output.attentions]

    def read(self, logits: Tensor, embeddings: Tensor) -> Tensor:
        """Return what is attributed, where the text's own pass is done.

        Args:
            logits: [B, V] after the text.
            embeddings: [B, T, D] of the text; what else has to be read, such as the foil's text, is read with them.
        """
        return self.function(self.reading(logits, embeddings))

    def reading(self, logits: Tensor, embeddings: Tensor) -> StepReading:
        """Return what functions of this step are computed from; the arguments are those of ``read``."""
        foil = None if self.foil is None else self.foil.id
        foil_logits = None if self.foil is None else self._foil_logits(self.foil, logits, embeddings)
        return StepReading(logits, self.target, foil, foil_logits, cache(partial(self._with_dropout, embeddings)))

    def baseline(self, choice: Baseline) -> Tensor:
        """Return embeddings that stand for no text, [1, T, D].

        Args:
            choice: ``zero``: zeros. ``mean``: the mean of the vocabulary's embeddings. ``pad``, ``unk``, ``bos``,
                ``eos``: the embedding of that token of the tokenizer. A number: that of this token id.

        Raises:
            InputError: for another choice, or a token the tokenizer does not have.
        """
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
        """Return the logits the foil is read from, [B, V].

        Where the foil has a text of its own, both texts have the embeddings of their common beginning in common: a
        change of the prompt is a change for both. Where they have not yet parted, that is the text's own pass.
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
    """Return the word embeddings of one text, [1, T, D], without a graph."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor([list(ids)], device=input_device(model)))


def hidden_states(model: PreTrainedModel, embeddings: Tensor) -> Tensor:
    """Return what the head reads, [B, T, D], for embeddings without padding."""
    return base_of(model)(inputs_embeds=embeddings, use_cache=False)[0]


def head(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return logits, float32 at least, for what the head reads: [..., D] -> [..., V]."""
    logits = logits_of(model, states)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def dropping_out(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Put a model into training mode for the time of a ``with`` block, then each module in the mode it had.

    The random numbers of the block are drawn from the seed, and the generators left as they were.
    """
    resting = [module for module in model.modules() if not module.training]
    with keeping_activations(anatomy_of(model).trunk), torch.random.fork_rng():
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        finally:
            for module in resting:
                module.training = False


def gathered_details(steps: Sequence[Step]) -> dict[str, ScoreArray]:
    """Return what the method said about itself, [G] under each name."""
    names = dict.fromkeys(name for step in steps for name in step.details)
    return {name: np.array([step.details.get(name, np.nan) for step in steps]) for name in names}


def foil_tokens(steps: Sequence[Step]) -> tuple[str, ...] | None:
    """Return what each step is held against, [G]; None without a contrast."""
    ids = [step.foil.id for step in steps if step.foil is not None]
    return tuple(steps[0].tokenizer.convert_ids_to_tokens(ids)) if ids else None


def array(values: Tensor) -> ScoreArray:
    """Return a tensor as an array, float32 at least."""
    return values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32)).numpy()
