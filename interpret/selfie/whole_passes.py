"""Interpretations by the model's own passes, for families that are described without their parts.

The results are those of ``decoding``, but rows share no computation: every row reads the whole template with its states
inserted by hooks, and the model's own ``generate`` writes on, with the model's own cache. Texts are scored by passes
over template and text. The rows of a batch have the same template, so no row is padded where it is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from interpret.anatomy import (
    anatomy_of,
    base_of,
    check_head,
    check_keeps_rotation,
    generating_by,
    input_device,
    logits_of,
    needs_whole_passes,
    uncompiled,
    unembedding_size,
)
from interpret.anatomy.passes import evaluating
from interpret.engine.continuations import at_once
from interpret.engine.greedy import end_tokens
from interpret.selfie.templates import InterpretationPrompt
from interpret.selfie.written import Written, most_likely
from interpret.surgery.hooks import applied
from interpret.surgery.plan import plan_surgery

Insertion = Mapping[Any, Any] | None
"""The ``insert_info`` entry of a row; None for a row with nothing inserted."""


@dataclass(frozen=True)
class WholePrimed:
    """A model and a template that it reads as a whole for every row."""

    model: PreTrainedModel
    template: InterpretationPrompt

    def bytes_of_row(self, new_tokens: int) -> int:
        """Estimate the memory of one row: its cache, the states inside a layer, and logits."""
        anatomy = anatomy_of(self.model)
        column = (2 * len(anatomy.layers) + 32) * anatomy.width * self.model.dtype.itemsize
        logits = 4 * (new_tokens + 4) * unembedding_size(self.model)[0]
        return (len(self.template.ids) + new_tokens) * column + logits


@dataclass(frozen=True)
class WholeStart:
    """R rows that read a template and can generate."""

    primed: WholePrimed
    insertions: Sequence[Insertion]
    """[R]."""


def prime_whole(model: PreTrainedModel, template: InterpretationPrompt, new_tokens: int) -> WholePrimed:
    """Check that a model's own passes can write and score texts of up to ``new_tokens`` tokens after a template.

    Raises:
        InputError: if its rotary embeddings change while it writes.
        UnsupportedModelError: if its logits are not those of its states.
    """
    check_head(model)
    check_keeps_rotation(model, f"the interpretation prompt {template.name!r}", len(template.ids), new_tokens)
    return WholePrimed(model, template)


@torch.no_grad()
def write_whole(start: WholeStart, rows: Sequence[int], new_tokens: int) -> list[Written]:
    """Generate greedily from some rows of a start, up to the end-of-text token or ``new_tokens`` tokens."""
    model, template = start.primed.model, start.primed.template
    ids = torch.tensor([template.ids] * len(rows), device=input_device(model))  # [R, T]
    ends, steps = end_tokens(model), list[Tensor]()

    def keep(ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the probability of the most likely token, [R, 2] with its id; the scores are not changed."""
        steps.append(most_likely(scores.float())[1])
        return scores

    config, _ = uncompiled(
        model,
        GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=not needs_whole_passes(model, len(template.ids), new_tokens),
            eos_token_id=ends or None,
            pad_token_id=0,
        ),
    )
    assert config is not None
    with evaluating(model), generating_by(model, config), _inserted(start.primed, [start.insertions[r] for r in rows]):
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([keep]),
        )
    found = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in rows]  # [R, G, 2]
    return [_up_to_end(row, ends) for row in found]


def _up_to_end(steps: Sequence[tuple[float, float]], ends: Sequence[int]) -> Written:
    """Return the text of a row, given the id and the probability of the most likely token at each step."""
    text = Written([], [])
    for token, p in steps:
        if token in ends and not isnan(p):
            break
        text.ids.append(int(token))
        text.probabilities.append(p)
        if isnan(p):
            break
    return text


@torch.no_grad()
def score_whole(start: WholeStart, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the probability of each token of N texts; text n continues row ``rows[n]`` of a start."""
    template = start.primed.template.ids
    return _scored(start.primed, [template] * len(rows), [start.insertions[row] for row in rows], texts)


def score_plain_whole(primed: WholePrimed, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the probability of each token of N texts after the template with nothing inserted."""
    different = list(dict.fromkeys(map(tuple, texts)))
    found = score_whole(WholeStart(primed, [None]), [0] * len(different), different)
    by_text = dict(zip(different, found, strict=True))
    return [by_text[tuple(text)] for text in texts]


def score_after_whole(
    primed: WholePrimed, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the probability of each token of N texts; text n continues ``prompts[n]``, with nothing inserted."""
    return _scored(primed, prompts, [None] * len(prompts), texts)


def _scored(
    primed: WholePrimed,
    prompts: Sequence[Sequence[int]],
    insertions: Sequence[Insertion],
    texts: Sequence[Sequence[int]],
) -> list[list[float]]:
    """Score one text per row, which continues the row's prompt, as many rows at once as is fast."""
    found = list[list[float]]()
    longest = max((len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)), default=0)
    for rows in at_once(range(len(texts)), max(1, longest), input_device(primed.model)):
        own = [insertions[row] for row in rows]
        found += _scored_at_once(primed, [prompts[row] for row in rows], own, [texts[row] for row in rows])
    return found


def _scored_at_once(
    primed: WholePrimed,
    prompts: Sequence[Sequence[int]],
    insertions: Sequence[Insertion],
    texts: Sequence[Sequence[int]],
) -> list[list[float]]:
    """Score one text per row in one pass; rows are padded on the right, after all tokens that are scored."""
    model = primed.model
    if not any(texts):
        return [[] for _ in texts]
    read = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    longest = max(map(len, read))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in read], device=input_device(model))  # [N, T + G]
    with evaluating(model), _inserted(primed, insertions):
        states = base_of(model)(ids, use_cache=False)[0]  # [N, T + G, D]
    found: list[list[float]] = []
    for row, own, prompt, text in zip(states, ids, prompts, texts, strict=True):
        first, end = len(prompt), len(prompt) + len(text)
        logits = logits_of(model, row[first - 1 : end - 1]).float()  # [G, V]
        p = logits.softmax(-1).gather(1, own[first:end, None].to(logits.device)).squeeze(1)
        found.append(p.tolist())
    return found


@contextmanager
def _inserted(primed: WholePrimed, insertions: Sequence[Insertion]) -> Iterator[None]:
    """Insert states into the template of each row, in the passes that this thread makes inside the ``with`` block."""
    anatomy, length = anatomy_of(primed.model), len(primed.template.ids)
    counts = [length] * len(insertions)
    plan = plan_surgery(insertions, token_counts=counts, n_layers=len(anatomy.layers), width=anatomy.width)
    with applied(anatomy, plan, torch.arange(length).expand(len(insertions), -1)):
        yield
