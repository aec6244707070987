"""Attributions of a prompt file in a run folder: one unit a prompt, one row a score.

``attributions/`` holds one file a prompt, numbered as in the file, which is whole before the prompt's rows are written;
``collected`` reads them again, one at a time, for the page and for one JSON file.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from transformers import PreTrainedTokenizerBase

from interpret.attribution._attribute import attributions, check_texts
from interpret.attribution.plan import Plan
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed, How
from interpret.attribution.targets import Alignment, Inputs, UnalignedError, one_for_each
from interpret.errors import InputError, ModelError
from interpret.prompts.chat import as_read, read_text
from interpret.prompts.prompts import Prompt
from interpret.records import TokenScore
from interpret.storage.run_folder import Run

FILES = "attributions"
NOT_ATTRIBUTED = "not attributed"
_ITS_WORDS = {"prompts": "the prompt", "targets": "the target", "contrast_targets": "the foil"}
_FIRST = re.compile(rf"\b({'|'.join(_ITS_WORDS)})\[0\]")


@dataclass(frozen=True)
class Question:
    """One prompt as the tokenizer gets it, and what follows it."""

    name: str
    prompt: str
    target: str | None
    """Words that follow the prompt; None where the model writes them."""
    foil: str | None
    """Words that would be wrong there."""


@dataclass(frozen=True)
class Reduction:
    """What becomes of the scores of one prompt; see ``Attribution.aggregate``."""

    how: How = "sum"
    normalize: bool = False
    subwords: bool = False


def questions(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], chat_template: str) -> list[Question]:
    """Put prompts into the text a model reads.

    Args:
        tokenizer: of the model.
        prompts: raw ones stay as they are, the others become a user's message.
        chat_template: as in ``chat.wrap``.

    Raises:
        InputError: if the template is wrong, or writes special tokens that the tokenizer would write again.
    """
    texts = [read_text(tokenizer, one, chat_template) for one in prompts]
    return [
        Question(one.name, as_read(tokenizer, text), one.target, one.foil)
        for one, text in zip(prompts, texts, strict=True)
    ]


def inputs_of(plan: Plan, question: Question, alignment: Alignment | None) -> Inputs:
    """Return what is asked for one prompt, checked where all of its text is given.

    Args:
        plan: how it is attributed.
        question: the prompt; its foil is not read where nothing needs one.
        alignment: of steps of the text and steps of the foil, where those differ in number.

    Raises:
        InputError: if a foil is missing, or texts do not fit.
    """
    foil = None
    if plan.contrast is not None:
        if question.foil is None:
            raise InputError('there is no foil to hold it against; give one, with --foil or the key "foil"')
        foil = _whole(plan, question.prompt, question.foil)
    target = None if question.target is None else _whole(plan, question.prompt, question.target)
    pairs = None if foil is None or alignment is None else [alignment]
    inputs = one_for_each(question.prompt, target, foil, pairs)
    if target is not None:
        with _of_one_prompt():
            check_texts(plan, inputs)
    return inputs


def _whole(plan: Plan, prompt: str, words: str) -> str:
    """Return a target as ``attribute`` takes it: the prompt and the words after it, or a translation alone."""
    if plan.languages is not None:
        return words
    return prompt + ("" if prompt[-1].isspace() or words[:1].isspace() else " ") + words


@contextmanager
def _of_one_prompt() -> Iterator[None]:
    """Word a mistake for the one prompt it is about: its target is no ``targets[0]``, and options have other names."""
    try:
        yield
    except UnalignedError as error:
        raise InputError(
            f"the foil has {error.n_foil_steps} tokens, the target {error.n_steps}: say which are held against which, "
            "with --align, such as 0:0,1:0 (token of the target, token of the foil), or hold only the first tokens "
            "against each other, with --steps 0:1"
        ) from None
    except InputError as error:
        raise InputError(_FIRST.sub(lambda found: _ITS_WORDS[found[1]], str(error))) from None


def write_attributions(
    run: Run, plan: Plan, asked: Sequence[Question], reduction: Reduction, *, alignment: Alignment | None = None
) -> Iterator[str]:
    """Do what is pending in a run, and yield the name of each unit as soon as it is safe.

    A prompt that cannot be attributed is dropped with its reason. Each is done by itself, so that its numbers do not
    hang on those that were done before the run was stopped.

    Args:
        run: open, over the names of the questions and ``TokenScore``.
        plan: how they are attributed.
        asked: all of them.
        reduction: what becomes of their scores.
        alignment: as in ``inputs_of``, the same for all.

    Raises:
        RunError: if the disk does not take the results; the units before are safe.
    """
    pending = set(run.pending)
    (run.folder / FILES).mkdir(exist_ok=True)
    for number, question in enumerate(asked):
        if question.name in pending:
            try:
                found = _attribution(plan, question, reduction, alignment)
                rows = token_scores(question, found)
            except (InputError, ModelError) as error:  # the latter: it does not fit in memory
                run.drop(question.name, f"{NOT_ATTRIBUTED}: {error}")
            else:
                found.save(_file(run.folder, number), overwrite=True, compress=True)
                run.write(question.name, rows)
            yield question.name


def _attribution(plan: Plan, question: Question, reduction: Reduction, alignment: Alignment | None) -> Attribution:
    inputs = inputs_of(plan, question, alignment)
    with _of_one_prompt():
        found = Attribution(list(attributions(plan, inputs)), plan.info)
    return found.aggregate(reduction.how, normalize=reduction.normalize, subwords=reduction.subwords)


def _file(folder: Path, number: int) -> Path:
    return folder / FILES / f"{number:05d}.json.gz"


def collected(folder: Path, numbers: Sequence[int]) -> Attribution:
    """Put prompts of a run together into one attribution, whose inputs are read when they are asked for.

    Args:
        folder: of the run.
        numbers: which of the run's prompts, at least one; all of them attributed.

    Raises:
        InputError: if a file cannot be read, now or later.
    """
    return Attribution(_Stored(folder, numbers), Attribution.load(_file(folder, numbers[0])).info)


@dataclass(frozen=True)
class _Stored(Sequence[Attributed]):
    """Prompts of a run, of which none is held: each is read from its file whenever it is asked for."""

    folder: Path
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Attributed: ...

    @overload
    def __getitem__(self, place: slice) -> "_Stored": ...

    def __getitem__(self, place: int | slice) -> "Attributed | _Stored":
        if isinstance(place, slice):
            return _Stored(self.folder, self.numbers[place])
        return Attribution.load(_file(self.folder, self.numbers[place])).sequences[0]


def token_scores(question: Question, found: Attribution) -> list[TokenScore]:
    """Return the rows of one prompt: step by step, activation by activation and token by token.

    Raises:
        InputError: if a score is not finite.
    """
    (one,) = found.sequences
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
    """Yield side, activation, position and score of what a step has read: a source, and all before its own token."""
    for (side, activation), values in one.parts().items():
        of_step = values[:, step] if side == "source" else values[:column, step]
        if not np.isfinite(of_step).all():
            raise InputError("scores are not finite; open the model in float32")
        for position, score in enumerate(of_step.tolist()):
            yield side, activation, position, score
