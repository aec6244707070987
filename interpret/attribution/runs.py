"""Attribute prompts into a run folder: one unit per prompt, one table row per score.

``attributions/`` holds one file per prompt, numbered as in the prompt file and written before the prompt's rows.
``run_files.attribution_of`` reads these files, one at a time, for the page and the JSON file of the whole run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.attribution._attribute import attributions
from interpret.attribution.parts import TextParts
from interpret.attribution.plan import Plan
from interpret.attribution.questions import Question, inputs_of, of_one_prompt, questions
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.files import compressed
from interpret.attribution.result.scores import How
from interpret.attribution.rows import token_scores
from interpret.attribution.run_files import FILES, file_name
from interpret.attribution.run_options import (
    BATCH_SIZE,
    RunOptions,
    align_words,
    layers_words,
    options_words,
    steps_words,
)
from interpret.attribution.run_plan import check_options, plan_run, read_pairs
from interpret.attribution.targets import Alignment
from interpret.errors import InputError, ModelError
from interpret.models.opening import model_circumstances, model_identity
from interpret.prompts.prompts import Prompt
from interpret.records import TokenScore
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import PromptList, prompt_list, read_options
from interpret.work.loop import Work, fill_folder
from interpret.work.progress import say

NOT_ATTRIBUTED = "not attributed"
ATTRIBUTING = Work("Attributing", "attributed", "prompts", failures=(NOT_ATTRIBUTED,))


@dataclass(frozen=True)
class Reduction:
    """How the scores of a prompt are aggregated; see ``Attribution.aggregate``."""

    how: How = "sum"
    normalize: bool = False
    subwords: bool = False


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Path | str | Prompt | Sequence[Prompt],
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
    chat_template: str = RunOptions.chat_template,
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
            ``foil``; or several, each with its own name.
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
        chat_template: for prompts that are not raw: ``model``, or a text that contains ``{prompt}``.
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
        chat_template=chat_template,
    )
    found = PromptList([examples], "") if isinstance(examples, Prompt) else prompt_list(examples)
    single = examples if isinstance(examples, Prompt) else None
    check_options(words, found.prompts)
    given = options if isinstance(options, Mapping) else read_options(options or ())
    foil_asked = single is not None and single.foil is not None
    plan = plan_run(model, tokenizer, words, found.prompts, given, batch_size, foil_asked)
    alignment = read_pairs(words.align)
    reduction = Reduction(cast(How, aggregate), normalize, subwords)
    asked = questions(tokenizer, found.prompts, chat_template)
    if single is not None:
        inputs_of(plan, asked[0], alignment)  # errors are raised before the folder is created
    own = {"examples": found.path, "batch_size": batch_size}
    return fill_folder(
        ATTRIBUTING,
        output,
        TokenScore,
        lambda run: write_attributions(run, plan, asked, reduction, alignment=alignment),
        others=(FILES,),
        units=[one.name for one in asked],
        identity={**model_identity(model), **_identity(words, plan, found, single), **(identity or {})},
        circumstances={**model_circumstances(model), **own, **(circumstances or {})},
        progress=progress,
    )


def _identity(words: RunOptions, plan: Plan, found: PromptList, single: Prompt | None) -> dict[str, Any]:
    """Return everything the scores depend on except the model, as the run records it."""
    return {
        "command": "attribute",
        "prompt": single and single.text,
        "target": single and _recorded(single.target),
        "foil": single and _recorded(single.foil),
        **({"raw": False} if single and not single.raw else {}),
        **asdict(words),
        "attributed_fn": plan.info.attributed_fn,
        "examples_sha256": None if single else found.sha256,
    }


def _recorded(continuation: str | Sequence[int] | None) -> str | list[int] | None:
    """Return what follows a prompt as JSON stores it."""
    return continuation if continuation is None or isinstance(continuation, str) else list(continuation)


def write_attributions(
    run: Run, plan: Plan, asked: Sequence[Question], reduction: Reduction, *, alignment: Alignment | None = None
) -> Iterator[str]:
    """Attribute the pending prompts of a run, and yield the name of each unit once its results are written.

    A prompt that cannot be attributed is dropped, and the reason is recorded. Each prompt is attributed separately, so
    that its scores do not depend on where the run was interrupted; its parts are stored, see ``parts``. Finished
    prompts of which the file is missing or changed are attributed again.

    Args:
        run: an open run; its units are the names of the questions, its rows ``TokenScore``.
        plan: of the attribution.
        asked: all questions.
        reduction: how the scores are aggregated.
        alignment: as in ``inputs_of``, the same for all prompts.

    Raises:
        RunError: if the results cannot be written; those of earlier units are kept.
    """
    pending, damaged = set(run.pending), set(run.damaged)
    for number, question in enumerate(asked):
        name, attributed = question.name, partial(_attribution, run, plan, question, reduction, alignment)
        if name in damaged:
            try:
                run.write_again(name, {file_name(number): compressed(attributed())})
            except (InputError, ModelError) as error:  # it does not fit in memory now
                say(f"the file of {name!r} is not made again: {error}")
            yield name
        elif name in pending:
            try:
                found = attributed()
                rows = token_scores(question, found)
            except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
                run.drop(name, f"{NOT_ATTRIBUTED}: {error}")
            else:
                run.write(name, rows, files={file_name(number): compressed(found)})
            yield name


def _attribution(
    run: Run, plan: Plan, question: Question, reduction: Reduction, alignment: Alignment | None
) -> Attribution:
    inputs = inputs_of(plan, question, alignment)
    parts = TextParts(run.parts_of(question.name), reduction.how)
    with of_one_prompt():
        found = Attribution(list(attributions(plan, inputs, parts)), plan.info)
    return found.aggregate(reduction.how, normalize=reduction.normalize, subwords=reduction.subwords)
