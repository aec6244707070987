"""What a change to a model preserves: how it continues the prompts of facts, before and after."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.engine.greedy import answers
from interpret.errors import InputError
from interpret.prompts.words import starts_with_words
from interpret.records import Preservation


def preservation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[tuple[str, str]],
    *,
    before: Sequence[str],
    new_tokens: int = 8,
    batch_size: int = 32,
) -> list[Preservation]:
    """Compare how a model continues the prompts of facts now with how it did before a control.

    A continuation is correct if it starts with the attribute's words, as whole words (``contains_words``).

    Args:
        model: as it is now: call this inside the control's ``with`` block.
        tokenizer: its tokenizer.
        facts: (prompt, attribute) pairs; prompts are read as they are, without a chat template.
        before: ``answers(...)`` to the same prompts, taken before the block.
        new_tokens: longest continuation; more than the tokens of every attribute.
        batch_size: prompts continued side by side.

    Returns:
        One row a fact: a list, because a generator would see whatever weights there are when it is used.

    Raises:
        InputError: naming the fact that cannot be checked.
    """
    if len(before) != len(facts):
        raise InputError(f"before holds {len(before)} answers for {len(facts)} facts: give one for each")
    for index, (_, attribute) in enumerate(facts):
        if not attribute.strip():
            raise InputError(f"fact {index} has an empty attribute: give the words that continue its prompt")
        length = len(tokenizer(" " + attribute.strip(), add_special_tokens=False).input_ids)
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
    """Return the shares of facts that were correct before and are correct after, each in [0, 1]."""
    if not rows:
        raise InputError("there is no row to take an accuracy over: give at least one fact")
    return (
        sum(row.correct_before for row in rows) / len(rows),
        sum(row.correct_after for row in rows) / len(rows),
    )
