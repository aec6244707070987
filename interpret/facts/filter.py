"""Find the facts a model knows. Only those are traced: an answer the model does not give has no location.

``known`` yields each fact with the model's answer, as ``Answered``; ``FilterCounts`` counts the kept facts, and the
dropped facts by reason.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice, takewhile
from math import nan
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import longest_text, unwrapping
from interpret.anatomy.passes import evaluating
from interpret.device import unless_too_large
from interpret.engine.greedy import Continuation, write_after
from interpret.errors import InputError, unknown
from interpret.facts.files import Fact
from interpret.prompts.chat import framed
from interpret.prompts.encoding import token_ids
from interpret.prompts.scripts import joined
from interpret.prompts.spelling import decoded
from interpret.prompts.vocabulary import special_ids
from interpret.prompts.words import starts_with_words

Rule = Literal["words", "first_token"]
RULES: tuple[Rule, ...] = ("words", "first_token")
Reason = Literal["", "wrong answer", "several tokens", "too long", "too large", "not finite"]
ROOM = 4
"""Tokens generated beyond the length of the attribute: for spaces, quotes, and the end of a longer word."""
BATCH_SIZE = 32
CHUNK = 16
"""Number of batches of facts that are sorted by length together; it bounds memory."""


@dataclass(frozen=True)
class Answered:
    """A fact, and the model's answer."""

    fact: Fact
    answer_text: str
    """The greedy continuation: ``ROOM`` tokens longer than the attribute, or one token for ``first_token``."""
    p: float
    """Probability of its first token, [0, 1]; NaN if nothing was generated."""
    correct: bool
    """Whether the model knows the fact, by the rule of ``known``."""
    reason: Reason
    """Why the fact is dropped; "" if it is kept. ``wrong answer``; ``several tokens``: the rule is ``first_token``,
    but the attribute has several tokens; ``too long``: prompt and answer exceed the model's maximum length;
    ``too large``: they do not fit in memory; ``not finite``: the model gives NaN or infinity, so that it has no
    answer."""


@dataclass
class FilterCounts:
    """Numbers of kept and of dropped facts."""

    n_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of dropped facts by reason."""

    def add(self, answered: Answered) -> None:
        """Count one more fact."""
        if answered.correct:
            self.n_kept += 1
        else:
            self.dropped[answered.reason] += 1

    @property
    def n_dropped(self) -> int:
        """Number of dropped facts."""
        return self.dropped.total()

    @property
    def n_in(self) -> int:
        """Number of all facts."""
        return self.n_kept + self.n_dropped


@unwrapping
def known(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Iterable[Fact],
    *,
    rule: Rule = "words",
    batch_size: int = BATCH_SIZE,
    chat_template: str | None = None,
) -> Iterator[Answered]:
    """Let a model answer the prompts of facts, and yield each fact with its answer, in order.

    Prompts of equal length share a batch, so that there is no padding. Memory does not grow with the number of facts.

    Args:
        model: a causal LM.
        tokenizer: the model's tokenizer.
        facts: the facts.
        rule: when an answer is correct. ``words``: the greedy continuation starts with the attribute, as whole words,
            ignoring case. ``first_token``: the first token, without surrounding spaces, is the attribute (ROME,
            Knowledge-Tracing); a fact whose attribute has several tokens never counts as known.
        batch_size: maximum number of prompts per batch.
        chat_template: template that makes each prompt the user's message of a chat, as in ``prompts.chat.wrap``; None
            to read the prompts as they are.

    Yields:
        One ``Answered`` per fact.

    Raises:
        InputError: if the rule is unknown, or the batch size is below 1.

    Example:
        >>> kept = [answered.fact for answered in known(model, tokenizer, facts) if answered.correct]  # doctest: +SKIP
    """
    if rule not in RULES:
        raise InputError(unknown("rule", rule, RULES))
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    return _known(model, tokenizer, iter(facts), rule, batch_size, chat_template)


def _known(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Iterator[Fact],
    rule: Rule,
    batch_size: int,
    chat_template: str | None,
) -> Iterator[Answered]:
    while chunk := [_asked(tokenizer, fact, rule, chat_template) for fact in islice(facts, CHUNK * batch_size)]:
        answers = {asked: too_long(asked.fact) for asked in chunk}
        for batch in _batches(model, chunk, batch_size):
            answers |= zip(batch, _answers(model, tokenizer, batch, rule), strict=True)
        yield from answers.values()


@dataclass(frozen=True)
class FactBatch:
    """Facts that a model answers in one batch."""

    facts: tuple[Fact, ...]
    rule: Rule
    chat_template: str | None

    def answers(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Answered]:
        """Return the model's answers, in order."""
        asked = [_asked(tokenizer, fact, self.rule, self.chat_template) for fact in self.facts]
        return _answers(model, tokenizer, asked, self.rule)


def fact_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    rule: Rule = "words",
    batch_size: int = BATCH_SIZE,
    chat_template: str | None = None,
) -> list[list[list[int]]]:
    """Return the batches in which ``known`` lets a model answer facts, so that several processes can share them.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        facts: the facts.
        rule: as in ``known``.
        batch_size: as in ``known``.
        chat_template: as in ``known``.

    Returns:
        For each chunk of ``CHUNK * batch_size`` facts: its batches, as indices of ``facts``. Facts that are too long
        are in none.
    """
    found = []
    for start in range(0, len(facts), CHUNK * batch_size):
        some = facts[start : start + CHUNK * batch_size]
        number = {_asked(tokenizer, fact, rule, chat_template): start + at for at, fact in enumerate(some)}
        found.append([[number[asked] for asked in batch] for batch in _batches(model, list(number), batch_size)])
    return found


def too_long(fact: Fact) -> Answered:
    """Return that a fact is too long for the model."""
    return Answered(fact, "", nan, correct=False, reason="too long")


def _batches(model: PreTrainedModel, chunk: Sequence["_Asked"], batch_size: int) -> Iterator[list["_Asked"]]:
    """Yield batches of prompts of equal length, without those that are too long for the model."""
    longest = longest_text(model)
    fitting = [asked for asked in chunk if len(asked.ids) + asked.new_tokens <= longest]
    for _, same_length in groupby(sorted(fitting, key=_length), key=_length):
        rows = list(same_length)
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A tokenised fact."""

    fact: Fact
    ids: Sequence[int]
    """[T] token ids of the prompt."""
    answer_tokens: int
    """Number of tokens of the attribute after the prompt."""
    new_tokens: int
    """Number of tokens to generate."""


def _length(asked: _Asked) -> int:
    return len(asked.ids)


def _asked(tokenizer: PreTrainedTokenizerBase, fact: Fact, rule: Rule, chat_template: str | None) -> _Asked:
    text = framed(tokenizer, fact.prompt, chat_template)
    ids, whole = (
        token_ids(tokenizer, one, add_special_tokens=text.add_special_tokens)
        for one in (text.text, joined(text.text, fact.attribute))
    )
    answer_tokens = len(whole) - len(ids)
    return _Asked(fact, ids, answer_tokens, 1 if rule == "first_token" else max(1, answer_tokens) + ROOM)


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[_Asked], rule: Rule
) -> list[Answered]:
    """Return the model's answers to B prompts of equal length; a batch that does not fit in memory is halved."""
    with evaluating(model):
        ids, new_tokens = [asked.ids for asked in batch], max(asked.new_tokens for asked in batch)
        written = unless_too_large(partial(write_after, model, ids, new_tokens))
    if written is None and len(batch) == 1:
        return [Answered(batch[0].fact, "", nan, correct=False, reason="too large")]
    if written is None:
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        return [answer for half in halves for answer in _answers(model, tokenizer, half, rule)]
    return [_judged(tokenizer, asked, one, rule) for asked, one in zip(batch, written, strict=True)]


def _judged(tokenizer: PreTrainedTokenizerBase, asked: _Asked, written: Continuation, rule: Rule) -> Answered:
    """Decide whether a continuation is correct for its fact; special tokens end it."""
    special, p = special_ids(tokenizer, written.ids), written.p_first
    own = list(takewhile(lambda token: token not in special, written.ids[: asked.new_tokens]))
    text, expected = decoded(tokenizer, own), asked.fact.attribute
    wrong: Reason = "wrong answer" if written.finite else "not finite"
    if rule == "words":
        correct = starts_with_words(text, expected)
        return Answered(asked.fact, text, p, correct, "" if correct else wrong)
    correct = text.strip() == expected
    reason: Reason = "several tokens" if asked.answer_tokens > 1 else wrong
    return Answered(asked.fact, text, p, correct, "" if correct else reason)
