"""Attribute prompts into a run folder: one unit per prompt, one table row per score.

``attributions/`` holds one file per prompt, numbered as in the prompt file and written before the prompt's rows.
``collected`` reads these files, one at a time, for the page and the JSON file of the whole run.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import anatomy_of
from interpret.attribution._attribute import attributions, check_texts
from interpret.attribution.languages import languages_of
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.plan import Plan, check_method_options, check_takes_layers, plan_attribution
from interpret.attribution.result.aggregation import HOWS
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.scores import Attributed, How
from interpret.attribution.run_options import (
    BATCH_SIZE,
    RunOptions,
    align_words,
    layers_words,
    options_words,
    steps_words,
)
from interpret.attribution.steps.functions import CONTRASTS, FUNCTIONS, Contrast, attributed_function, step_functions
from interpret.attribution.targets import Alignment, Inputs, UnalignedError, one_for_each
from interpret.errors import InputError, ModelError, unknown
from interpret.finite import NOTHING_FINITE
from interpret.models.opening import model_circumstances, model_identity
from interpret.prompts import selectors
from interpret.prompts.chat import model_text
from interpret.prompts.prompts import Prompt, raw_unless_said
from interpret.prompts.scripts import joined
from interpret.records import TokenScore
from interpret.storage.run_folder import Run, RunFolder
from interpret.work.inputs import Examples, PromptList, prompt_list, read_options
from interpret.work.loop import Work, fill_folder

FILES = "attributions"
NOT_ATTRIBUTED = "not attributed"
ATTRIBUTING = Work("Attributing", "attributed", "prompts", failures=(NOT_ATTRIBUTED,))
CONTRAST, PLAIN = "contrast_prob_diff", "probability"
"""The default attributed functions: if every prompt has a foil, and otherwise."""
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


@dataclass(frozen=True)
class Reduction:
    """How the scores of a prompt are aggregated; see ``Attribution.aggregate``."""

    how: How = "sum"
    normalize: bool = False
    subwords: bool = False


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Prompt | Examples,
    output: Path | str,
    *,
    source_language: str | None = RunOptions.source_language,
    target_language: str | None = RunOptions.target_language,
    method: str = RunOptions.method,
    attributed_fn: str | None = RunOptions.attributed_fn,
    contrast: str = RunOptions.contrast,
    align: str | Alignment | None = RunOptions.align,
    steps: str | tuple[int | None, int | None] = RunOptions.steps,
    new_tokens: int = RunOptions.new_tokens,
    step_scores: Sequence[str] | None = RunOptions.step_scores,
    layers: str | int | Sequence[int | str] | None = RunOptions.layers,
    options: Mapping[str, Any] | Sequence[str] | None = RunOptions.options,
    aggregate: str = RunOptions.aggregate,
    normalize: bool = RunOptions.normalize,
    subwords: bool = RunOptions.subwords,
    raw: bool = False,
    chat_template: str | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Attribute prompts into a run folder, as ``interpret attribute`` does; the same call resumes an interrupted run.

    Args:
        model: as in ``attribute``.
        tokenizer: its tokenizer.
        examples: a file of prompts, as examples/examples.json; one ``Prompt``, optionally with ``target`` and
            ``foil``; several, each with its own name; or rows as dicts, such as a Hugging Face data set.
        output: the run folder; it gets ``table.csv``, ``attributions/`` and ``manifest.json``.
        source_language: as in ``attribute``.
        target_language: as in ``attribute``.
        method: one of ``list_methods()``.
        attributed_fn: one of ``list_step_functions()``. By default ``contrast_prob_diff``, P(target) - P(foil), if
            every prompt has a foil, else ``probability``.
        contrast: the context of the foil: ``same_context`` or ``own_prefix``, as in ``attribute``.
        align: pairs (step of the target, step of the foil), the same for all prompts; also as ``"0:0,2:1"``.
        steps: which tokens after the prompt are attributed, (first, end) as in a slice; also as ``"0:1"``.
        new_tokens: maximum number of tokens generated for a prompt without a target.
        step_scores: functions to report for each step, besides the attributed one.
        layers: for layer methods and attention: numbers, or activation names; also as ``"3,7"`` or ``"0:20:5"``.
        options: options of the method and the functions, by name; also as ``["n_steps=20"]``.
        aggregate: how the embedding dimension is reduced: ``sum``, ``mean`` or ``l2``.
        normalize: divide the scores of each step by the sum of their absolute values.
        subwords: sum the scores over the tokens of each word.
        raw: read prompts that do not say ``raw`` themselves as they are.
        chat_template: make these prompts the user's message of a chat: ``model``, or a text that contains
            ``{prompt}``. With neither: see ``Prompt.raw``, and the model's own template.
        batch_size: number of points or masked texts in a batch.
        progress: show a progress bar on stderr.
        identity: further JSON values the scores depend on, such as the version of your own method; a run is resumed
            only if they are equal.
        circumstances: further values to write into the manifest; they may change when the run is resumed.

    Returns:
        The run folder, for reading; ``attribution_of`` returns its scores as an ``Attribution``.

    Raises:
        InputError: if an argument is wrong for all prompts, or for a single ``Prompt``. Otherwise, a prompt that cannot
            be attributed is dropped, and the reason is recorded.
        RunError: if the folder holds another run, or cannot be written.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> prompt = Prompt("capital", "The capital of France is", raw=True, target="Paris")
        >>> interpret.attribution.run(model, tokenizer, prompt, "runs/capital").to_frame()  # doctest: +SKIP
    """
    words = RunOptions(
        source_language=source_language,
        target_language=target_language,
        method=method,
        attributed_fn=attributed_fn,
        contrast=contrast,
        align=align_words(align),
        steps=steps_words(steps),
        new_tokens=new_tokens,
        step_scores=None if step_scores is None else list(step_scores),
        layers=layers_words(layers),
        options=options_words(options),
        aggregate=aggregate,
        normalize=normalize,
        subwords=subwords,
        chat_template=RunOptions.chat_template if chat_template is None else chat_template,
    )
    said = raw_unless_said(raw=raw, chat_template=chat_template)
    found = PromptList([examples], "") if isinstance(examples, Prompt) else prompt_list(examples, raw=said)
    single = examples if isinstance(examples, Prompt) else None
    check_options(words, found.prompts)
    given = options if isinstance(options, Mapping) else read_options(options or ())
    foil_asked = single is not None and single.foil is not None
    plan = _plan(model, tokenizer, words, found.prompts, given, batch_size, foil_asked)
    alignment = _pairs(words.align)
    reduction = Reduction(cast(How, aggregate), normalize, subwords)
    asked = questions(tokenizer, found.prompts, words.chat_template)
    if single is not None:
        inputs_of(plan, asked[0], alignment)  # errors are raised before the folder is created
    own = {"examples": found.path, "batch_size": batch_size}
    return fill_folder(
        ATTRIBUTING,
        output,
        TokenScore,
        lambda run: write_attributions(run, plan, asked, reduction, alignment=alignment),
        lost=lost_files,
        others=(FILES,),
        units=[one.name for one in asked],
        identity={**model_identity(model), **_identity(words, plan, found, single, said), **(identity or {})},
        circumstances={**model_circumstances(model), **own, **(circumstances or {})},
        progress=progress,
    )


def _identity(
    words: RunOptions, plan: Plan, found: PromptList, single: Prompt | None, said: bool | None
) -> dict[str, Any]:
    """Return everything the scores depend on except the model, as the run records it."""
    return {
        "command": "attribute",
        "prompt": single and single.text,
        "target": single and _recorded(single.target),
        "foil": single and _recorded(single.foil),
        **({"raw": False} if single and not single.raw else {} if single or said is None else {"raw": said}),
        **asdict(words),
        "attributed_fn": plan.info.attributed_fn,
        "examples_sha256": None if single else found.sha256,
    }


def _recorded(continuation: str | Sequence[int] | None) -> str | list[int] | None:
    """Return what follows a prompt as JSON stores it."""
    return continuation if continuation is None or isinstance(continuation, str) else list(continuation)


def default_function(prompts: Sequence[Prompt]) -> str:
    """Return the function that is attributed by default."""
    return CONTRAST if all(one.foil is not None for one in prompts) else PLAIN


def check_options(words: RunOptions, prompts: Sequence[Prompt]) -> None:
    """Check the options that can be checked without a model.

    Raises:
        InputError: if an option is wrong; the message names it.
    """
    function = attributed_function(words.attributed_fn or default_function(prompts))
    reported = step_functions(words.step_scores or [])
    for kind, name, allowed in (
        ("contrast", words.contrast, CONTRASTS),
        ("method", words.method, METHODS),
        ("aggregate", words.aggregate, HOWS),
    ):
        if name not in allowed:
            raise InputError(unknown(kind, name, allowed))
    _slice(words.steps)
    _pairs(words.align)
    if words.layers is not None:
        check_takes_layers(words.method)
    check_method_options(words.method, [function, *reported], read_options(words.options or ()))


def _plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: RunOptions,
    prompts: Sequence[Prompt],
    options: Mapping[str, Any],
    batch_size: int,
    foil_asked: bool,
) -> Plan:
    """Return the plan of a run.

    Args:
        model: as in ``run``.
        tokenizer: its tokenizer.
        words: the options, checked.
        prompts: all prompts.
        options: options of the method and the functions.
        batch_size: as in ``run``.
        foil_asked: whether there is a single prompt with a foil; it is then an error if no function uses the foil.
    """
    function = attributed_function(words.attributed_fn or default_function(prompts))
    reported = step_functions(words.step_scores or [])
    needs_foil = any(FUNCTIONS[name].contrast for name in (function, *reported))
    start, end = _slice(words.steps)
    return plan_attribution(
        model,
        tokenizer,
        method=words.method,
        attributed_fn=function,
        contrast=cast(Contrast, words.contrast) if needs_foil else None,
        with_foils=needs_foil or foil_asked,
        step_scores=reported,
        layers=_layers(words.layers, model),
        start=start,
        end=end,
        batch_size=batch_size,
        max_new_tokens=words.new_tokens,
        options=options,
        languages=languages_of(model, tokenizer, words.source_language, words.target_language),
    )


def _pairs(words: str | None) -> Alignment | None:
    """Read '0:0,2:1'."""
    if words is None:
        return None
    try:
        pairs = [tuple(int(number) for number in pair.split(":")) for pair in words.split(",")]
        return [(step, of_foil) for step, of_foil in pairs]
    except ValueError:
        raise InputError(f"align {words!r} is not understood; give pairs of numbers, such as 0:0,2:1") from None


def _slice(words: str) -> tuple[int | None, int | None]:
    """Read 'first:end'."""
    try:
        first, end = (int(bound) if bound.strip() else None for bound in words.split(":"))
    except ValueError:
        raise InputError(f"steps {words!r} is not understood; give first:end, such as 0:1") from None
    return first, end


def _layers(words: str | None, model: PreTrainedModel) -> list[int | str] | None:
    """Read '0:20:5,-1' into numbers; names of activations stay as they are."""
    if words is None:
        return None
    config = model.config
    n_layers = config.decoder_layers if config.is_encoder_decoder else len(anatomy_of(model).layers)
    found: list[int | str] = []
    for part in (part.strip() for part in words.split(",")):
        found += [part] if part[:1].isalpha() and part != "all" else selectors.select("layer", part, n_layers)
    return found


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
        Question(one.name, text.text, text.add_special_tokens, one.target, one.foil)
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
    )
    if target is not None:
        with _of_one_prompt():
            check_texts(plan, inputs)
    return inputs


def _whole(plan: Plan, prompt: str, target: str | Sequence[int]) -> str | Sequence[int]:
    """Return a target as ``attribute`` takes it: the prompt and the words after it, only the translation, or ids."""
    if plan.languages is not None or not isinstance(target, str):
        return target
    return joined(prompt, target)


@contextmanager
def _of_one_prompt() -> Iterator[None]:
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


def write_attributions(
    run: Run, plan: Plan, asked: Sequence[Question], reduction: Reduction, *, alignment: Alignment | None = None
) -> Iterator[str]:
    """Attribute the pending prompts of a run, and yield the name of each unit once its results are written.

    A prompt that cannot be attributed is dropped, and the reason is recorded. Each prompt is attributed separately, so
    that its scores do not depend on where the run was interrupted.

    Args:
        run: an open run; its units are the names of the questions, its rows ``TokenScore``.
        plan: of the attribution.
        asked: all questions.
        reduction: how the scores are aggregated.
        alignment: as in ``inputs_of``, the same for all prompts.

    Raises:
        RunError: if the results cannot be written; those of earlier units are kept.
    """
    pending, lost = set(run.pending), set(lost_files(run))
    (run.folder / FILES).mkdir(exist_ok=True)
    for number, question in enumerate(asked):
        if question.name in lost:
            found = _attribution(plan, question, reduction, alignment)
            found.save(_file(run.folder, number), overwrite=True, compress=True)
            yield question.name
        elif question.name in pending:
            try:
                found = _attribution(plan, question, reduction, alignment)
                rows = token_scores(question, found)
            except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
                run.drop(question.name, f"{NOT_ATTRIBUTED}: {error}")
            else:
                found.save(_file(run.folder, number), overwrite=True, compress=True)
                run.write(question.name, rows)
            yield question.name


def lost_files(run: Run) -> list[str]:
    """Return the names of attributed prompts whose file was deleted."""
    numbers = {unit: number for number, unit in enumerate(run.units)}
    return [name for name in run.kept if not _file(run.folder, numbers[name]).is_file()]


def _attribution(plan: Plan, question: Question, reduction: Reduction, alignment: Alignment | None) -> Attribution:
    inputs = inputs_of(plan, question, alignment)
    with _of_one_prompt():
        found = Attribution(list(attributions(plan, inputs)), plan.info)
    return found.aggregate(reduction.how, normalize=reduction.normalize, subwords=reduction.subwords)


def _file(folder: Path, number: int) -> Path:
    return folder / FILES / f"{number:05d}.json.gz"


def attribution_of(run: RunFolder) -> Attribution:
    """Return the attributed prompts of a run as one attribution; each is read from its file on access.

    Raises:
        InputError: if no prompt of the run was attributed, or a file cannot be read.
    """
    kept = [number for number, unit in enumerate(run.units) if unit not in run.dropped]
    if not kept:
        raise InputError(f"{run.folder} holds no attributed prompt; see 'dropped' in its manifest")
    return collected(run.folder, kept)


def collected(folder: Path, numbers: Sequence[int]) -> Attribution:
    """Return prompts of a run as one attribution, whose inputs are read from their files on access.

    Args:
        folder: the run folder.
        numbers: indices of the prompts in the run; at least one, and all must have been attributed.

    Raises:
        InputError: if a file cannot be read, here or on access.
    """
    return Attribution(_Stored(folder, numbers), Attribution.load(_file(folder, numbers[0])).info)


@dataclass(frozen=True)
class _Stored(Sequence[Attributed]):
    """Attributed prompts of a run, read from their files on every access; none is kept in memory."""

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
