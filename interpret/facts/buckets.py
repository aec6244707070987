"""Where in a prompt a token stands, so that effects on prompts of all lengths can be averaged.

Two schemes are in use. ``rome`` has six buckets (Meng et al. 2022, figure 2), ``kt`` the four of Knowledge-Tracing.
In both, a token counts once, and these rules decide, the first that fits:

1. The last token of the prompt is ``last``: the answer is read there, so restoring it means something else than
   restoring a token before it. That holds also where it is the first one after the subject, or the subject's own.
2. The last token of the subject is ``last_subject``; the only token of a subject is its last.
3. The first token of the subject is ``first_subject``; ``rome`` calls those between ``middle_subject``.
4. What comes after the subject is ``further``; ``rome`` calls the first of it ``first_subsequent``.

Tokens before the subject are in no bucket, and in ``kt`` neither are those in the middle of it.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from interpret.errors import InputError, unknown
from interpret.stats import Average, Floats, average

Scheme = Literal["rome", "kt"]
SCHEMES: Mapping[Scheme, tuple[str, ...]] = MappingProxyType(
    {
        "rome": ("first_subject", "middle_subject", "last_subject", "first_subsequent", "further", "last"),
        "kt": ("first_subject", "last_subject", "further", "last"),
    }
)
"""The buckets of each scheme, in the order of a prompt."""


def token_buckets(n_tokens: int, subject_span: tuple[int, int], *, scheme: Scheme = "rome") -> list[str | None]:
    """Return the bucket of every token of a prompt.

    Args:
        n_tokens: T.
        subject_span: first and one past the last token of the subject.
        scheme: ``rome`` or ``kt``.

    Returns:
        [T] names of buckets; None for a token that is in none.

    Raises:
        InputError: if the scheme is none of these, or the span is not inside the prompt.

    >>> token_buckets(6, (1, 3), scheme="kt")
    [None, 'first_subject', 'last_subject', 'further', 'further', 'last']
    """
    if scheme not in SCHEMES:
        raise InputError(unknown("bucket scheme", scheme, SCHEMES))
    start, end = subject_span
    if not 0 <= start < end <= n_tokens:
        raise InputError(f"the subject's span {subject_span} is not inside the prompt's {n_tokens} tokens")
    return [_bucket(token, n_tokens, start, end, SCHEMES[scheme]) for token in range(n_tokens)]


def _bucket(token: int, n_tokens: int, start: int, end: int, names: Sequence[str]) -> str | None:
    if token == n_tokens - 1:
        return "last"
    if token == end - 1:
        return "last_subject"
    if token == start:
        return "first_subject"
    if token < end:
        return "middle_subject" if token > start and "middle_subject" in names else None
    return "first_subsequent" if token == end and "first_subsequent" in names else "further"


def bucket_means(effects: ArrayLike, subject_span: tuple[int, int], *, scheme: Scheme = "rome") -> Floats:
    """Average one prompt's effects over the tokens of each bucket.

    Args:
        effects: [T, ...], such as ``TraceResult.indirect_effects``, [T, L].
        subject_span: first and one past the last token of the subject.
        scheme: ``rome`` or ``kt``.

    Returns:
        [buckets, ...] in the order of ``SCHEMES``; NaN where the prompt has no token of a bucket.

    Raises:
        InputError: as ``token_buckets`` does.

    >>> bucket_means([0.1, 0.4, 0.2, 0.4, 0.5], (0, 1), scheme="kt").round(2)
    array([ nan, 0.1 , 0.33, 0.5 ])
    """
    values = np.asarray(effects, dtype=np.float64)
    of_tokens = token_buckets(len(values), subject_span, scheme=scheme)
    means = np.full((len(SCHEMES[scheme]), *values.shape[1:]), np.nan)
    for row, name in enumerate(SCHEMES[scheme]):
        tokens = [token for token, bucket in enumerate(of_tokens) if bucket == name]
        if tokens:
            means[row] = values[tokens].mean(axis=0)
    return means


def average_buckets(
    effects: Sequence[ArrayLike],
    subject_spans: Sequence[tuple[int, int]],
    *,
    scheme: Scheme = "rome",
    confidence: float = 0.95,
    seed: int = 0,
) -> Average:
    """Average effects over prompts, bucket by bucket: the AIE of ROME's figure 2, one line a bucket.

    Each prompt counts once in a bucket, by its mean over the bucket's tokens: pooled tokens would give a prompt with
    a long ending more weight, and a mean over prompts subtracted from a mean over tokens is not a mean of effects.

    Args:
        effects: one [T, ...] array a prompt; T may differ, the rest not.
        subject_spans: one a prompt.
        scheme: ``rome`` or ``kt``.
        confidence: share of the means inside the interval, see ``average``.
        seed: of its draws.

    Returns:
        Means of shape [buckets, ...]; ``n`` counts the prompts that have a token of the bucket, and a bucket of no
        prompt is NaN.

    Raises:
        InputError: as ``token_buckets`` does; also if there is no prompt, or not one span for each.
    """
    if len(effects) != len(subject_spans):
        raise InputError(f"there are {len(subject_spans)} spans for {len(effects)} prompts: give one for each")
    pairs = zip(effects, subject_spans, strict=True)
    means = [bucket_means(values, span, scheme=scheme) for values, span in pairs]
    return average(means, confidence=confidence, seed=seed)
