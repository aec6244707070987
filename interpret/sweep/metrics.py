"""Metrics: numbers computed from the logits at the last positions of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from interpret.device import in_float64
from interpret.errors import InputError, unknown

Kind = Literal["probability", "log_probability", "logit", "logit_difference", "rank"]
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Metric:
    """One number per run, about the tokens of an answer.

    An answer of K tokens is read at the last K positions: the runs contain the prompt and the first K - 1 tokens of
    the answer. Log-probabilities, logits and differences are summed over these positions, probabilities multiplied. A
    rank is of a single token: 1 plus the number of tokens with a higher logit. It has no derivative.
    """

    kind: Kind
    answer: tuple[int, ...]
    """K token ids."""
    foil: tuple[int, ...] | None = None
    """K token ids whose logits are subtracted, for ``logit_difference``."""


def check_metrics(metrics: Mapping[str, Metric], vocabulary: int, n_tokens: int) -> int:
    """Check the metrics of a sweep and return the number of positions they read.

    Raises:
        InputError: if a metric is invalid; the message names it.
    """
    if not metrics:
        raise InputError("a sweep needs at least one metric")
    for name, metric in metrics.items():
        problem = _problem(metric, vocabulary, n_tokens)
        if problem:
            raise InputError(f"metrics[{name!r}]: {problem}")
    return max(len(metric.answer) for metric in metrics.values())


def _problem(metric: Metric, vocabulary: int, n_tokens: int) -> str:
    """Return what is wrong with a metric; "" if it is valid."""
    if metric.kind not in KINDS:
        return unknown("kind", metric.kind, KINDS)
    if not metric.answer:
        return "the answer has no tokens"
    if len(metric.answer) > n_tokens:
        return f"an answer of {len(metric.answer)} tokens cannot be read from runs of {n_tokens} tokens"
    if (metric.foil is not None) != (metric.kind == "logit_difference"):
        return "give a foil for logit_difference, and for no other kind"
    if metric.foil is not None and len(metric.foil) != len(metric.answer):
        return f"the foil has {len(metric.foil)} tokens, the answer {len(metric.answer)}; give the same number"
    if metric.kind == "rank" and len(metric.answer) > 1:
        return f"the answer has {len(metric.answer)} tokens; a rank is of a single token"
    for token in (*metric.answer, *(metric.foil or ())):
        if not 0 <= token < vocabulary:
            return f"token id {token} does not exist; the vocabulary has ids 0 to {vocabulary - 1}"
    return ""


def read(metrics: Sequence[Metric], logits: Tensor) -> Tensor:
    """Return each position's contribution to each metric, [metrics, R, M], float64, differentiable.

    Args:
        metrics: what to read.
        logits: [R, M, V], at the last M of the positions that predict the longest answer.
    """
    positions = logits.shape[1]
    total = None
    parts = []
    for metric in metrics:
        m = min(len(metric.answer), positions)
        chosen = _chosen(logits, metric.answer[-m:])
        value = in_float64(chosen)
        if metric.foil is not None:
            value = value - in_float64(_chosen(logits, metric.foil[-m:]))
        elif metric.kind == "rank":
            rank = in_float64(1 + (logits[:, -m:] > chosen[..., None]).sum(dim=-1))
            value = rank.masked_fill(value.isnan(), float("nan"))
        elif metric.kind != "logit":
            total = in_float64(torch.logsumexp(logits, dim=-1)) if total is None else total
            value = value - total[:, -m:]
        parts.append(nn.functional.pad(value, (positions - m, 0)))
    return torch.stack(parts)


def _chosen(logits: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Return the logits of m tokens at the last m positions, [R, M, V] -> [R, m]."""
    places = range(-len(tokens), 0)
    return torch.stack([logits[:, place, token] for place, token in zip(places, tokens, strict=True)], dim=-1)


def together(metric: Metric, parts: Tensor) -> Tensor:
    """Return the metric, [R], from the contributions of its positions, [R, K]."""
    total = parts.sum(dim=-1)
    return total.exp() if metric.kind == "probability" else total
