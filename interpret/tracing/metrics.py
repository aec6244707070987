"""The metrics of a trace: numbers about the answer, read off the logits of every run in one sweep.

Zhang & Nanda 2024 (arXiv:2309.16042) compare them, and recommend the logit difference of answer and foil: it is linear
in the final state, and does not saturate as probabilities do.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError, unknown
from interpret.prompts.chat import ChatText
from interpret.prompts.tokens import following
from interpret.sweep.metrics import KINDS, Kind, Metric

DIFFERENCE, RANK = "logit_difference", "rank"


def check_trace_metrics(metrics: Sequence[str]) -> None:
    """Check that metrics exist, that there is one, and that none is given twice.

    Raises:
        InputError: if not; the message names the metric.
    """
    if not metrics:
        raise InputError("no metric is given; give at least one, such as probability")
    for place, metric in enumerate(metrics):
        if metric not in KINDS:
            raise InputError(unknown("metric", metric, KINDS))
        if metric in metrics[:place]:
            raise InputError(f"the metric {metric} is given twice; give each metric once")


def trace_metrics(
    tokenizer: PreTrainedTokenizerBase,
    text: ChatText,
    answer_ids: tuple[int, ...],
    foil: str | Sequence[int] | None,
    metrics: Sequence[Kind],
) -> dict[str, Metric]:
    """Return the metrics of an answer by name.

    Args:
        tokenizer: the model's tokenizer.
        text: the prompt as the model reads it.
        answer_ids: ids of the K tokens of the answer that are read.
        foil: a wrong answer for ``logit_difference``, as words or ids; its first K tokens are read.
        metrics: names of metrics.

    Raises:
        InputError: if a metric needs a foil and there is none, or the other way round; or if a foil is invalid.
    """
    if DIFFERENCE in metrics and foil is None:
        raise InputError(f"the metric {DIFFERENCE} needs a foil: give a wrong answer")
    if foil is not None and DIFFERENCE not in metrics:
        raise InputError(f"a foil is read by the metric {DIFFERENCE} only; add the metric, or leave out the foil")
    if RANK in metrics and len(answer_ids) > 1:
        raise InputError("a rank is of a single token, not of a whole answer; give the answer_tokens 'first'")
    foil_ids = None if foil is None else _foil_ids(tokenizer, text, answer_ids, foil)
    return {kind: Metric(kind, answer_ids, foil_ids if kind == DIFFERENCE else None) for kind in metrics}


def _foil_ids(
    tokenizer: PreTrainedTokenizerBase, text: ChatText, answer_ids: tuple[int, ...], foil: str | Sequence[int]
) -> tuple[int, ...]:
    ids = following(tokenizer, text, foil, "foil")
    if len(ids) < len(answer_ids):
        raise InputError(f"the foil {foil!r} has {len(ids)} tokens, the answer {len(answer_ids)}; give a longer foil")
    ids = ids[: len(answer_ids)]
    if ids[0] == answer_ids[0]:
        raise InputError(f"the foil {foil!r} begins with the token of the answer; give another foil")
    return ids
