"""Steps of toy texts whose tokens are masked, and occlusion by full forward passes."""

from collections.abc import Callable

import torch
from torch import Tensor

from interpret.attribution.methods import masked_texts as masked_texts
from interpret.attribution.methods import masking
from interpret.attribution.steps.functions import StepReading, logit
from interpret.attribution.steps.step import Step
from reference.toy_tokenizers import sentence_piece

IDS = (1, 5, 9, 5, 70, 33, 2, 8)

BASELINES = ("zero", "mean", "unk", 7)


def step_of(model, ids=IDS, target=11, function: Callable[[StepReading], Tensor] = logit, foil=None, batch_size=3):
    return Step(model, sentence_piece(), ids, target, foil, function, batch_size)


def occlusion(step: Step, **options) -> Tensor:
    return masking.occlusion([step], **options)[0]


def lime(step: Step, **options) -> Tensor:
    return masking.lime([step], **options)[0]


def whole_pass(step: Step, embeddings: Tensor) -> Tensor:
    """The value of one text from the model's own forward pass, [1, T, D] -> a scalar."""
    logits = step.model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
    return step.function(StepReading(logits, step.target, None, None, lambda n, seed: logits))[0]


@torch.no_grad()
def occluded(step: Step, window: int, baseline) -> Tensor:
    """Occlusion by its definition, with one full pass per window."""
    T, replacement = len(step.ids), step.baseline(baseline)
    of_token: list[list[Tensor]] = [[] for _ in range(T)]
    plain = whole_pass(step, step.embeddings)
    for first in range(T - window + 1):
        embeddings = step.embeddings.clone()
        embeddings[:, first : first + window] = replacement[:, first : first + window]
        lost = plain - whole_pass(step, embeddings)
        for token in range(first, first + window):
            of_token[token].append(lost)
    return torch.stack([torch.stack(values).mean() for values in of_token])


def steps_of(model, lengths, **options):
    """Steps of one text, each with the tokens before it."""
    return [step_of(model, ids=IDS[:length], target=11 + length, **options) for length in lengths]
