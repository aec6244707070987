"""The prompts of a run as the tokenizer reads them, each with its target and foil, and errors about a single prompt."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from interpret.attribution._attribute import check_texts
from interpret.attribution.plan import Plan
from interpret.attribution.targets import Alignment, Inputs, UnalignedError, one_for_each
from interpret.errors import InputError
from interpret.prompts.chat import model_text
from interpret.prompts.prompts import Prompt
from interpret.prompts.scripts import joined
from interpret.prompts.spelling import Span

_SINGLE_NAMES = {"prompts": "the prompt", "targets": "the target", "contrast_targets": "the foil"}
_FIRST = re.compile(rf"\b({'|'.join(_SINGLE_NAMES)})\[0\]")


@dataclass(frozen=True)
class Question:
    """One prompt as it is given to the tokenizer, with its target and foil."""

    name: str
    prompt: str
    add_special_tokens: bool
    """Whether the tokenizer puts its opening tokens before the prompt; a model's chat template already has them."""
    target: str | Sequence[int] | None
    """Words or token ids that follow the prompt; None if the model generates the continuation."""
    foil: str | Sequence[int] | None
    """What the target is contrasted with; None without a foil."""
    content: Span | None = None
    """The characters of the user's message in the prompt; None for all."""


def questions(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], chat_template: str) -> list[Question]:
    """Return prompts as the texts a model reads.

    Args:
        tokenizer: the model's tokenizer.
        prompts: raw prompts are not changed; the others are wrapped as a user message.
        chat_template: as in ``chat.wrap``.

    Raises:
        InputError: if the template is wrong.
    """
    texts = [model_text(tokenizer, one, chat_template) for one in prompts]
    return [
        Question(one.name, text.text, text.add_special_tokens, one.target, one.foil, text.content)
        for one, text in zip(prompts, texts, strict=True)
    ]


def inputs_of(plan: Plan, question: Question, alignment: Alignment | None) -> Inputs:
    """Return the inputs of one prompt; they are checked if its target is given.

    Args:
        plan: of the attribution.
        question: the prompt; its foil is ignored if no function uses it.
        alignment: pairs (step of the text, step of the foil); None if both have the same number of steps.

    Raises:
        InputError: if a foil is missing, or a text is invalid.
    """
    foil = None
    if plan.contrast is not None:
        if question.foil is None:
            raise InputError('there is no foil; give one, with --foil or the key "foil"')
        foil = _whole(plan, question.prompt, question.foil)
    target = None if question.target is None else _whole(plan, question.prompt, question.target)
    pairs = None if foil is None or alignment is None else [alignment]
    inputs = one_for_each(
        question.prompt,
        None if target is None else [target],
        None if foil is None else [foil],
        pairs,
        add_special_tokens=question.add_special_tokens,
        content=question.content,
    )
    if target is not None:
        with of_one_prompt():
            check_texts(plan, inputs)
    return inputs


def _whole(plan: Plan, prompt: str, target: str | Sequence[int]) -> str | Sequence[int]:
    """Return a target as ``attribute`` takes it: ids, or words, before which decoder-only models read the prompt."""
    if plan.seq2seq is not None or not isinstance(target, str):
        return target
    return joined(prompt, target)


@contextmanager
def of_one_prompt() -> Iterator[None]:
    """Rephrase errors for a single prompt: "the target" instead of ``targets[0]``, and options of the command."""
    try:
        yield
    except UnalignedError as error:
        raise InputError(
            f"the foil has {error.n_foil_steps} tokens, the target {error.n_steps}: give --align, such as 0:0,1:0, "
            "pairs (token of the target, token of the foil), or attribute only the first token, with --steps 0:1"
        ) from None
    except InputError as error:
        raise InputError(_FIRST.sub(lambda found: _SINGLE_NAMES[found[1]], str(error))) from None
