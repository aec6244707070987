"""From the attribution of one prompt to the rows of the table of a run."""

from collections.abc import Iterator

import numpy as np

from interpret.attribution.questions import Question
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed
from interpret.errors import InputError
from interpret.finite import NOTHING_FINITE
from interpret.records import TokenScore


def token_scores(question: Question, found: Attribution) -> list[TokenScore]:
    """Return the table rows of one prompt, ordered by step, activation and token.

    Raises:
        InputError: if no score, or no value of the attributed function, is finite.
    """
    (one,) = found.sequences
    tally = one.tally()
    if tally.bad == tally.total > 0 or not np.isfinite(one.step_scores[found.info.attributed_fn]).any():
        raise InputError(f"scores {NOTHING_FINITE}")
    attributed_fn = found.info.attributed_fn
    others = [name for name in one.step_scores if name != attributed_fn]
    rows = []
    for step, column in enumerate(range(one.start, one.stop)):
        reported = [float(one.step_scores[name][step]) for name in others]
        for side, activation, position, score in _seen(one, step, column):
            tokens = one.tokens if side == "target" else one.source_tokens or ()
            rows.append(
                TokenScore(
                    name=question.name,
                    prompt=question.prompt,
                    step=step,
                    step_position=column,
                    step_token=one.tokens[column],
                    foil_token="" if one.foil_tokens is None else one.foil_tokens[step],
                    value=float(one.step_scores[attributed_fn][step]),
                    activation=activation,
                    position=position,
                    token=tokens[position],
                    in_prompt=side == "source" or (one.source_tokens is None and position < one.n_prompt),
                    score=score,
                    step_score_names=others,
                    step_scores=reported,
                )
            )
    return rows


def _seen(one: Attributed, step: int, column: int) -> Iterator[tuple[str, str, int, float]]:
    """Yield (side, activation, position, score) of all tokens before a step's own token, and of the source."""
    for (side, activation), values in one.parts().items():
        of_step = values[:, step] if side == "source" else values[:column, step]
        for position, score in enumerate(of_step.tolist()):
            yield side, activation, position, score
