"""Buckets of token positions, so that effects can be averaged over prompts of different lengths.

There are two schemes: ``rome`` has six buckets (Meng et al. 2022, figure 2), ``kt`` the four of Knowledge-Tracing. A
token is in at most one bucket, chosen by the first rule that applies:

1. The last token of the prompt is ``last``, even if it directly follows the subject or belongs to it: the answer is
   predicted at this token, so restoring it has a different meaning than restoring an earlier token.
2. The last token of the subject is ``last_subject``, also if it is the only one.
3. The first token of the subject is ``first_subject``; tokens between the first and the last are ``middle_subject`` in
   ``rome`` and in no bucket in ``kt``.
4. Tokens after the subject are ``further``; in ``rome``, the first of them is ``first_subsequent``.

Tokens before the subject are in no bucket.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from interpret.errors import InputError, unknown
from interpret.stats import Average, Floats, average, finite_mean

Scheme = Literal["rome", "kt"]
SCHEMES: Mapping[Scheme, tuple[str, ...]] = MappingProxyType(
    {
        "rome": ("first_subject", "middle_subject", "last_subject", "first_subsequent", "further", "last"),
        "kt": ("first_subject", "last_subject", "further", "last"),
    }
)
"""The buckets of each scheme, in prompt order."""


def token_buckets(n_tokens: int, subject_span: tuple[int, int], *, scheme: Scheme = "rome") -> list[str | None]:
    """Return the bucket of every token of a prompt.

    Args:
        n_tokens: number of tokens of the prompt, T.
        subject_span: first and one past the last token of the subject.
        scheme: ``rome`` or ``kt``.

    Returns:
        [T] names of buckets; None for a token in no bucket.

    Raises:
        InputError: if the scheme is unknown, or the span is not inside the prompt.

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
        [buckets, ...] in the order of ``SCHEMES``; NaN for a bucket without tokens in the prompt, or without a finite
        effect. Effects that are not finite are left out.

    Raises:
        InputError: as ``token_buckets`` raises.

    >>> bucket_means([0.1, 0.4, 0.2, 0.4, 0.5], (0, 1), scheme="kt").round(2)
    array([ nan, 0.1 , 0.33, 0.5 ])
    """
    values = np.asarray(effects, dtype=np.float64)
    of_tokens = token_buckets(len(values), subject_span, scheme=scheme)
    means = np.full((len(SCHEMES[scheme]), *values.shape[1:]), np.nan)
    for row, name in enumerate(SCHEMES[scheme]):
        tokens = [token for token, bucket in enumerate(of_tokens) if bucket == name]
        if tokens:
            means[row] = finite_mean(values[tokens])
    return means


def average_buckets(
    effects: Sequence[ArrayLike],
    subject_spans: Sequence[tuple[int, int]],
    *,
    scheme: Scheme = "rome",
    confidence: float = 0.95,
    seed: int = 0,
) -> Average:
    """Average effects over prompts, bucket by bucket: the AIE of ROME's figure 2.

    Effects are averaged over a bucket's tokens within each prompt, then over prompts, so that each prompt has the same
    weight. Pooling the tokens of all prompts would give prompts with long endings more weight.

    Args:
        effects: one array [T, ...] per prompt; only T may differ between prompts.
        subject_spans: one span per prompt: first and one past the last token of the subject.
        scheme: ``rome`` or ``kt``.
        confidence: confidence level of the interval, see ``average``.
        seed: random seed of the bootstrap.

    Returns:
        Averages of shape [buckets, ...]; ``n`` counts the prompts that have a token with a finite effect in the
        bucket. A bucket without one in any prompt is NaN.

    Raises:
        InputError: as ``token_buckets`` raises; also if there is no prompt, or not one span per prompt.
    """
    if len(effects) != len(subject_spans):
        raise InputError(f"there are {len(subject_spans)} spans for {len(effects)} prompts: give one span per prompt")
    pairs = zip(effects, subject_spans, strict=True)
    means = [bucket_means(values, span, scheme=scheme) for values, span in pairs]
    return average(means, confidence=confidence, seed=seed)
