"""ReAGent: importance of tokens from texts in which some are replaced by other plausible tokens.

Zhao and Shan 2024 (arXiv:2402.00794), section 3 and algorithm 1. The paper samples the other tokens from a masked
language model; here they come from the model itself: its predictions after the tokens before. Shapes: F tokens of the
text that may be replaced, P probes, T tokens, V vocabulary.
"""

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from interpret.attribution.methods.gradients import check_count
from interpret.attribution.methods.masked_texts import replaced_values
from interpret.attribution.steps.functions import StepReading, probability
from interpret.attribution.steps.step import Step
from interpret.errors import InputError
from interpret.finite import MODEL_GIVES_NAN
from interpret.prompts.spelling import piece
from interpret.storage.parts import UnitParts

_EDGE = 1e-6
"""How close to 0 and 1 a share may come before its logit is taken."""


def reagent(
    step: Step,
    *,
    n_probes: int = 8,
    max_rounds: int = 50,
    replaced: float = 0.3,
    kept: float = 0.3,
    top_k: int = 3,
    seed: int = 0,
) -> Tensor:
    """Return the importance of each token for the probability of the step's token, [T]; the scores sum to 1.

    Each probe starts with random scores. In every round, it replaces random tokens, and the drop of the probability is
    added to the scores of the replaced tokens and subtracted from those of the others, on a logistic scale. It stops
    when the tokens with the highest scores suffice: with all others replaced, the step's token is among the most likely
    ones. The result is the mean over the probes of the softmax of their scores. Special tokens are never replaced, and
    their score is 0. The step's detail ``stopped`` is the share of probes that stopped.

    Scores do not depend on the attributed function.

    Args:
        step: the step.
        n_probes: P, the number of probes; their texts are run side by side.
        max_rounds: number of rounds after which a probe ends in any case.
        replaced: probability that a token is replaced in a round; above 0 and below 1.
        kept: share of the tokens that have to suffice; above 0 and below 1.
        top_k: the step's token suffices among that many.
        seed: random seed.

    Raises:
        InputError: for an option out of range, or a text with only special tokens.
    """
    _check_options(n_probes, max_rounds, replaced, kept, top_k)
    free = (~step.special & ~step.kept).cpu().nonzero()[:, 0]  # [F]
    if not len(free):
        name = piece(step.tokenizer, step.target)
        raise InputError(f"the text before token {name!r} has only special tokens, which ReAGent never replaces")
    draws = Draws(torch.tensor(step.ids), free, alternatives(step, free), torch.Generator().manual_seed(seed))
    likely = replace(step, function=probability, stored=UnitParts())
    ranked = replace(step, function=rank_of_target, stored=UnitParts())
    whole = replaced_values(likely, draws.ids[None])
    scores = torch.rand(n_probes, len(free), generator=draws.generator, dtype=torch.float64)
    going = torch.arange(n_probes)  # the probes that have not stopped
    n_kept = ceil(kept * len(free))
    done, together = 0, 1
    # What is replaced does not depend on scores, so the texts of 1, 2, 4, ... rounds are run together.
    while done < max_rounds and len(going):
        n = min(together, max_rounds - done)
        chosen = torch.rand(n, len(going), len(free), generator=draws.generator) < replaced  # [n, P, F]
        lost = whole - _values(likely, draws, chosen)[..., None]
        shares = 0.5 + 0.5 * torch.where(chosen, lost, -lost)
        after = scores[going] + torch.logit(shares, eps=_EDGE).cumsum(0)  # the scores after each round
        others = after.argsort(2, descending=True).argsort(2) >= n_kept
        suffices = _values(ranked, draws, others) < top_k  # [n, P]
        stops = suffices.any(0)
        last = torch.where(stops, suffices.int().argmax(0), n - 1)
        scores[going] = after[last, torch.arange(len(going))]
        going = going[~stops]
        done, together = done + n, 2 * together
    step.details["stopped"] = 1 - len(going) / n_probes
    importance = scores.softmax(1).mean(0)
    return importance.new_zeros(len(step.ids)).index_put((free,), importance)


def _check_options(n_probes: int, max_rounds: int, replaced: float, kept: float, top_k: int) -> None:
    for name, count in (("n_probes", n_probes), ("max_rounds", max_rounds), ("top_k", top_k)):
        check_count(name, count)
    for name, share in (("replaced", replaced), ("kept", kept)):
        if not 0 < share < 1:
            raise InputError(f"{name} is {share}; it must be above 0 and below 1")


def _values(step: Step, draws: "Draws", chosen: Tensor) -> Tensor:
    """Return the values of texts with other tokens where ``chosen``, [n, P, F] -> [n, P]."""
    return replaced_values(step, draws.texts(chosen.flatten(0, 1))).view(chosen.shape[:2])


def rank_of_target(reading: StepReading) -> Tensor:
    """Return how many tokens are more likely than the target, [B]."""
    return (reading.logits > reading.logits[:, [reading.target]]).sum(1).float()


@dataclass(frozen=True)
class Draws:
    """Draws texts in which some tokens are replaced."""

    ids: Tensor
    """[T], the text."""
    free: Tensor
    """[F], the columns that may be replaced."""
    shares: Tensor
    """[F, V], how likely each other token is there; rows need not sum to 1."""
    generator: torch.Generator

    def texts(self, chosen: Tensor) -> Tensor:
        """Return texts with other tokens where ``chosen``, [N, F] bool -> [N, T] ids."""
        others = torch.multinomial(self.shares, len(chosen), replacement=True, generator=self.generator).T  # [N, F]
        texts = self.ids.repeat(len(chosen), 1)
        texts[:, self.free] = torch.where(chosen, others, texts[:, self.free])
        return texts


def alternatives(step: Step, free: Tensor) -> Tensor:
    """Return how likely each other token is at some columns after the tokens before it, [F] -> [F, V] float64.

    At the first column, which nothing predicts, all other tokens are equally likely. Special tokens are left out.

    Raises:
        InputError: if the predictions are not finite.
    """
    logits = step.head(step.states(step.embeddings)[0]).double().cpu()  # [T, V]
    if not logits.isfinite().all():
        raise InputError(f"no other token can be drawn: {MODEL_GIVES_NAN}")
    shares = torch.cat([torch.ones_like(logits[:1]), logits[:-1].softmax(-1)])[free]
    vocabulary = step.tokenizer.get_vocab()
    shares[:, max(vocabulary.values()) + 1 :] = 0  # rows of the unembedding without a token
    shares[:, [token for token in step.tokenizer.all_special_ids if token < shares.shape[1]]] = 0
    return shares.scatter(1, torch.tensor(step.ids)[free, None], 0)
