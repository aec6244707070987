"""Texts, which of their tokens are attributed, and what those are held against.

A target is the whole text: the prompt and what follows it, written by the model or given. Columns count the tokens
of the whole text; steps those after the prompt, from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from interpret.anatomy import longest_text
from interpret.attribution.plan import Plan
from interpret.attribution.steps.functions import Contrast
from interpret.attribution.steps.step import Foil
from interpret.device import in_batches
from interpret.engine.greedy import write_after
from interpret.errors import InputError

Alignment = Sequence[tuple[int, int]]
"""Pairs (step of the text, step of the foil)."""


class UnalignedError(InputError):
    """A text and its contrast differ in length, and nothing says which of their steps belong together."""

    def __init__(self, number: int, n_steps: int, n_foil_steps: int) -> None:
        """Take the number of the input, and how many tokens follow the prompt in the text and in its contrast."""
        self.n_steps, self.n_foil_steps = n_steps, n_foil_steps
        super().__init__(
            f"contrast_targets[{number}] has {n_foil_steps} tokens after the prompt, the text {n_steps}: "
            "say which are held against which, as in alignment=[[(0, 0)]], pairs (step, step of the contrast), or "
            "attribute the first alone, with end=1"
        )


@dataclass(frozen=True)
class Text:
    """One input: T tokens, of which G are attributed."""

    ids: tuple[int, ...]
    """[T]."""
    n_prompt: int
    start: int
    """Column of the first attributed token."""
    stop: int
    """One past the column of the last."""
    foils: tuple[Foil | None, ...]
    """[G]."""
    n_source: int = 0
    """Of a translation: its first so many tokens are the source, and the prompt is that and what the decoder begins
    with."""


@dataclass(frozen=True)
class Inputs:
    """What an attribution is asked for: N prompts and what belongs to each."""

    prompts: Sequence[str]
    targets: Sequence[str] | None
    """N; None where the model writes them."""
    contrast_targets: Sequence[str] | None
    """N; None without a contrast."""
    alignment: Sequence[Alignment] | None
    """N; None where steps have the same number in text and foil."""


def one_for_each(
    prompts: str | Sequence[str],
    targets: str | Sequence[str] | None = None,
    contrast_targets: str | Sequence[str] | None = None,
    alignment: Sequence[Alignment] | None = None,
) -> Inputs:
    """Put inputs together; a single text stands for a list of one.

    Raises:
        InputError: if there is no prompt, or not one of the others for each.
    """
    rows, whole, foils = (None if of is None else _listed(of) for of in (prompts, targets, contrast_targets))
    if not rows:
        raise InputError("there is no prompt: give at least one")
    for name, given in [("targets", whole), ("contrast_targets", foils), ("alignment", alignment)]:
        if given is not None and len(given) != len(rows):
            raise InputError(f"{name} has {len(given)} entries for {len(rows)} prompts; give one for each")
    if alignment is not None and foils is None:
        raise InputError("alignment says which steps of contrast_targets are meant; give those too")
    return Inputs(rows, whole, foils, alignment)


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def texts_of(plan: Plan, inputs: Inputs, first: int) -> list[Text]:
    """Return one batch of texts, written by the model where no targets are given.

    Args:
        plan: what is done.
        inputs: all of them.
        first: number of the batch's first one.

    Raises:
        InputError: for texts that do not fit.
    """
    numbers = range(len(inputs.prompts))[first : first + plan.batch_size]
    prompts = [_prompt_ids(plan.tokenizer, inputs.prompts[number], number) for number in numbers]
    if inputs.targets is None:
        for number, ids in zip(numbers, prompts, strict=True):
            check_length(plan, f"prompts[{number}]", len(ids), plan.max_new_tokens)
        written = in_batches(prompts, len(prompts), partial(_written, plan), lambda _: None)
        wholes = [(*ids, *new) for ids, new in zip(prompts, written, strict=True)]
    else:
        wholes = [
            _continuation(plan, "targets", number, inputs.targets[number], inputs.prompts[number], ids)
            for number, ids in zip(numbers, prompts, strict=True)
        ]
    rows = zip(numbers, prompts, wholes, strict=True)
    return [
        text_of(plan, inputs, number, ids, len(prompt), _foil_ids(plan, inputs, number, prompt))
        for number, prompt, ids in rows
    ]


def _written(plan: Plan, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    return [written.ids for written in write_after(plan.model, prompts, plan.max_new_tokens)]


def _foil_ids(plan: Plan, inputs: Inputs, number: int, prompt_ids: tuple[int, ...]) -> tuple[int, ...] | None:
    if inputs.contrast_targets is None:
        return None
    foil, prompt = inputs.contrast_targets[number], inputs.prompts[number]
    return _continuation(plan, "contrast_targets", number, foil, prompt, prompt_ids)


def text_of(
    plan: Plan,
    inputs: Inputs,
    number: int,
    ids: tuple[int, ...],
    n_prompt: int,
    foil_ids: tuple[int, ...] | None,
) -> Text:
    """Choose the steps of a text, and what each is held against.

    Args:
        plan: what is done.
        inputs: all of them.
        number: of this one.
        ids: [T], the whole text.
        n_prompt: its first so many tokens are the prompt.
        foil_ids: the whole text of the contrast, after the same prompt; None without one.

    Raises:
        InputError: if there are no steps, or the contrast does not fit.
    """
    n_steps = len(ids) - n_prompt
    if not n_steps:
        raise InputError(f"prompts[{number}]: the model ends its text at once; give targets to attribute others")
    steps = range(n_steps)[plan.start : plan.end]
    if not steps:
        limits = f"start={plan.start} and end={plan.end}"
        raise InputError(f"prompts[{number}]: {limits} leave none of the {n_steps} tokens after the prompt")
    foils: tuple[Foil | None, ...] = (None,) * len(steps)
    if foil_ids is not None:
        pairs = None if inputs.alignment is None else inputs.alignment[number]
        if pairs is None and plan.end is not None and list(steps) == [0]:
            pairs = [(0, 0)]  # the first tokens both follow the prompt, however many come after them
        foil_steps = _aligned(n_steps, len(foil_ids) - n_prompt, steps, pairs, number)
        foils = tuple(_foil(foil_ids, n_prompt + step, plan.contrast) for step in foil_steps)
    return Text(ids, n_prompt, n_prompt + steps.start, n_prompt + steps.stop, foils)


def _foil(ids: tuple[int, ...], column: int, contrast: Contrast | None) -> Foil:
    return Foil(ids[column], ids[:column] if contrast == "own_prefix" else None)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, number: int) -> tuple[int, ...]:
    check_text(f"prompts[{number}]", prompt)
    ids = _ids(tokenizer, prompt)
    if not ids:
        raise InputError(f"prompts[{number}] {prompt!r} has no tokens; a text begins with at least one")
    return ids


def check_text(what: str, text: object) -> None:
    """Refuse what is no text."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {text!r}; give a text")


def check_length(plan: Plan, what: str, n_tokens: int, n_new: int = 0) -> None:
    """Refuse a text that is longer than the model has positions for, with what is to be written after it."""
    longest = longest_text(plan.model)
    if n_tokens + n_new > longest:
        more = f"; with {n_new} new ones it exceeds the" if n_new else ", more than the"
        raise InputError(f"{what} has {n_tokens} tokens{more} {longest} this model reads")


def _continuation(plan: Plan, what: str, number: int, text: str, prompt: str, ids: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens of a text that goes on after a prompt.

    Args:
        plan: what is done.
        what: the argument the text comes from, for messages.
        number: its place there.
        text: the prompt and what follows it.
        prompt: the prompt.
        ids: its tokens.

    Returns:
        All tokens of the text.

    Raises:
        InputError: if they do not begin with the prompt's, are no more than those, or more than the model reads.
    """
    check_text(f"{what}[{number}]", text)
    whole = _ids(plan.tokenizer, text)
    if whole[: len(ids)] != tuple(ids) and not text.startswith(prompt):
        both = f"{prompt.rstrip()} {text.strip()}"
        raise InputError(
            f"{what}[{number}] {text!r} does not begin with its prompt {prompt!r}: give both as one text, as {both!r}"
        )
    if whole[: len(ids)] != tuple(ids):
        raise InputError(
            f"{what}[{number}] {text!r} does not extend its prompt {prompt!r}: its tokens do not begin with the "
            "prompt's. End the prompt with a whole word, without a space after it"
        )
    if len(whole) == len(ids):
        raise InputError(f"{what}[{number}] {text!r} ends where its prompt does; there is nothing to attribute")
    check_length(plan, f"{what}[{number}]", len(whole))
    return whole


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def _aligned(n_steps: int, n_foil_steps: int, steps: range, alignment: Alignment | None, number: int) -> list[int]:
    """Return which step of the foil each attributed step is held against.

    Args:
        n_steps: tokens after the prompt.
        n_foil_steps: those of the foil.
        steps: which are attributed.
        alignment: pairs; None where each step has its own number in the foil.
        number: of the input, for messages.

    Raises:
        InputError: if the lengths differ without an alignment, or the alignment has a step twice, lacks one, or
            names one that does not exist.
    """
    if alignment is None:
        if n_steps != n_foil_steps:
            raise UnalignedError(number, n_steps, n_foil_steps)
        return list(steps)
    for step, foil_step in alignment:
        if not (0 <= step < n_steps and 0 <= foil_step < n_foil_steps):
            raise InputError(
                f"alignment[{number}] has the pair ({step}, {foil_step}); the text has steps 0 to {n_steps - 1}, "
                f"its contrast 0 to {n_foil_steps - 1}"
            )
    pairs = dict(alignment)
    if len(pairs) < len(alignment):
        raise InputError(f"alignment[{number}] has a step of the text twice; give one pair a step")
    missing = [step for step in steps if step not in pairs]
    if missing:
        raise InputError(
            f"alignment[{number}] has no pair for step {missing[0]}; add one, or leave the step out with start and end"
        )
    return [pairs[step] for step in steps]
