"""Preservation of facts: compare a model's answers before and after a change to its weights."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.engine.greedy import answers
from interpret.errors import InputError
from interpret.prompts.encoding import token_ids
from interpret.prompts.words import starts_with_words
from interpret.records import Preservation


@unwrapping
def preservation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[tuple[str, str]],
    *,
    before: Sequence[str],
    new_tokens: int = 8,
    batch_size: int = 32,
) -> list[Preservation]:
    """Compare a model's current continuations of the prompts of facts with those before a control.

    A continuation is correct if it starts with the attribute, as whole words.

    Args:
        model: the changed model: call this inside the ``with`` block of the control.
        tokenizer: the model's tokenizer.
        facts: (prompt, attribute) pairs; prompts are read as they are, without a chat template.
        before: the result of ``answers`` for the same prompts, computed before the block.
        new_tokens: maximum length of a continuation; must exceed the number of tokens of every attribute.
        batch_size: number of prompts per batch.

    Returns:
        One row per fact. It is a list, because a generator would use the weights at the time of its consumption.

    Raises:
        InputError: if a fact cannot be checked; the message names it.
    """
    if len(before) != len(facts):
        raise InputError(f"before has {len(before)} answers for {len(facts)} facts: give one answer per fact")
    for index, (_, attribute) in enumerate(facts):
        if not attribute.strip():
            raise InputError(f"fact {index} has an empty attribute: give the words that continue its prompt")
        length = len(token_ids(tokenizer, " " + attribute.strip(), add_special_tokens=False))
        if length >= new_tokens:
            raise InputError(
                f"fact {index}: {attribute!r} has {length} tokens; give new_tokens of {length + 1} or more"
            )
    prompts = [prompt for prompt, _ in facts]
    after = answers(model, tokenizer, prompts, new_tokens=new_tokens, batch_size=batch_size)
    return [
        Preservation(
            prompt=prompt,
            attribute=attribute,
            before=old,
            after=new,
            correct_before=starts_with_words(old, attribute),
            correct_after=starts_with_words(new, attribute),
        )
        for (prompt, attribute), old, new in zip(facts, before, after, strict=True)
    ]


def accuracy(rows: Sequence[Preservation]) -> tuple[float, float]:
    """Return the share of correct facts before and after the change, each in [0, 1]."""
    if not rows:
        raise InputError("rows is empty: an accuracy needs at least one fact")
    return (
        sum(row.correct_before for row in rows) / len(rows),
        sum(row.correct_after for row in rows) / len(rows),
    )
