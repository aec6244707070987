"""The tokens whose attention is knocked out: the sources of a knockout, as words or positions -> token positions.

After Geva et al. 2023 (arXiv:2304.14767, section 5): the last token cannot attend to the subject, to the other tokens
of the prompt, or to itself. This module does not import torch.
"""

from interpret.errors import InputError
from interpret.prompts.selectors import check_selector, select

SUBJECT, RELATION, ITSELF, LAST = "subject", "relation", "itself", "last"
SOURCES = (SUBJECT, RELATION, ITSELF, LAST)
"""Words for sources, besides ``all``. subject: the tokens of the subject. relation: all others, such as those of the
relation. Neither contains the token that attends, which is ``itself``. last: the last token of the prompt."""


def check_sources(sources: str) -> None:
    """Check sources without a prompt.

    Raises:
        InputError: if they are not words of ``SOURCES``, ``all``, positions or slices, separated by commas.
    """
    check_selector("token", sources, SOURCES)


def source_tokens(sources: str, token: int, n_tokens: int, subject_span: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the positions that a token of the prompt cannot attend to, in ascending order.

    Args:
        sources: words of ``SOURCES``, ``all``, positions or slices, separated by commas.
        token: position of the token that attends.
        n_tokens: number of tokens of the prompt.
        subject_span: position of the first token of the subject, and one past the last; None without a subject.

    Raises:
        InputError: if a position does not exist, or the sources need a subject and there is none.

    >>> source_tokens("subject", 4, 6, (1, 4)), source_tokens("relation", 4, 6, (1, 4))
    ((1, 2, 3), (0,))
    >>> source_tokens("itself,0", 2, 6, None), source_tokens("all", 2, 6, None)
    ((0, 2), (0, 1, 2))
    """
    parts = [part.strip() for part in sources.split(",")]
    if subject_span is None and {SUBJECT, RELATION} & set(parts):
        raise InputError(f"sources {sources!r} need a subject: give the part of the prompt that is the subject")
    subject = range(*(subject_span or (0, 0)))
    others = [place for place in range(n_tokens) if place != token]
    names = {
        SUBJECT: [place for place in others if place in subject],
        RELATION: [place for place in others if place not in subject],
        ITSELF: [token],
        LAST: [n_tokens - 1],
    }
    # Later tokens are never attended to.
    chosen = {place for part in parts for place in _chosen(part, n_tokens, names)}
    return tuple(sorted(place for place in chosen if place <= token))


def _chosen(part: str, n_tokens: int, names: dict[str, list[int]]) -> list[int]:
    """Return the positions of one word, position or slice; a word may stand for none."""
    return names[part] if part in names else select("token", part, n_tokens)
