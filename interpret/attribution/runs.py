"""Attribute prompts into a run folder: one unit per prompt, one table row per score.

``attributions/`` holds one file per prompt, numbered as in the prompt file and written before the prompt's rows.
``run_files.attribution_of`` reads these files, one at a time, for the page and the JSON file of the whole run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.attribution.comparison_jobs import ComparisonJob
from interpret.attribution.groups import Groups
from interpret.attribution.jobs import AttributionJob, Reduction
from interpret.attribution.methods.registry import How, reduction_of
from interpret.attribution.run_options import (
    BATCH_SIZE,
    RunOptions,
    align_words,
    compare_words,
    groups_words,
    layers_words,
    options_words,
    steps_words,
)
from interpret.attribution.run_plan import check_options
from interpret.attribution.targets import Alignment
from interpret.errors import InputError
from interpret.models.opening import Opening
from interpret.prompts.prompts import Prompt, raw_unless_said
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import Examples, PromptList, prompt_list, read_options
from interpret.workers.runs import run_job
from interpret.workers.settings import Workers


@unwrapping
def run(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: Prompt | Examples,
    output: Path | str,
    *,
    source_language: str | None = RunOptions.source_language,
    target_language: str | None = RunOptions.target_language,
    method: str = RunOptions.method,
    compare: str | Sequence[str] | None = RunOptions.compare,
    versus: str | None = RunOptions.versus,
    attributed_fn: str | None = RunOptions.attributed_fn,
    contrast: str = RunOptions.contrast,
    align: str | Alignment | None = RunOptions.align,
    steps: str | tuple[int | None, int | None] = RunOptions.steps,
    new_tokens: int = RunOptions.new_tokens,
    step_scores: Sequence[str] | None = RunOptions.step_scores,
    layers: str | int | Sequence[int | str] | None = RunOptions.layers,
    groups: Groups | None = RunOptions.groups,
    options: Mapping[str, Any] | Sequence[str] | None = RunOptions.options,
    aggregate: str | None = RunOptions.aggregate,
    normalize: bool = RunOptions.normalize,
    subwords: bool = RunOptions.subwords,
    raw: bool = False,
    chat_template: str | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | Workers = 1,
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
        compare: several methods instead, which are compared as by ``compare_methods``; also as
            ``"saliency,occlusion"``. The table then has one row per prompt, output token and method, and
            ``Comparison(found.records())`` is the result; there is no ``attributions/``.
        versus: for one ``Prompt``: another prompt that differs in some words. Both are attributed with the same
            continuation, and the table has the differences of their scores, aligned as by
            ``aggregate(minus=..., align=True)``.
        attributed_fn: one of ``list_step_functions()``. By default ``contrast_prob_diff``, P(target) - P(foil), if
            every prompt has a foil, else ``probability``.
        contrast: the context of the foil: ``same_context`` or ``own_prefix``, as in ``attribute``.
        align: pairs (step of the target, step of the foil), the same for all prompts; also as ``"0:0,2:1"``.
        steps: which tokens after the prompt are attributed, (first, end) as in a slice; also as ``"0:1"``.
        new_tokens: maximum number of tokens generated for a prompt without a target.
        step_scores: functions to report for each step, besides the attributed one.
        layers: for layer methods and attention: numbers, or activation names; also as ``"3,7"`` or ``"0:20:5"``.
        groups: as in ``attribute``, the same for all prompts; of a chat, in the user's message.
        options: options of the method and the functions, by name; also as ``["n_steps=20"]``.
        aggregate: how the embedding dimension is reduced: ``sum``, ``mean`` or ``l2``; by default as each method does,
            see ``Attribution.aggregate``.
        normalize: divide the scores of each step by the sum of their absolute values.
        subwords: sum the scores over the tokens of each word.
        raw: read prompts that do not say ``raw`` themselves as they are.
        chat_template: make these prompts the user's message of a chat: ``model``, or a text that contains
            ``{prompt}``. With neither: see ``Prompt.raw``, and the model's own template.
        batch_size: number of points or masked texts in a batch.
        workers: number of processes that open the model and share the prompts, or ``Workers``. They open it as
            ``interpret.load`` has opened it; it may also be an ``Opening``, with None for ``tokenizer``.
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
        compare=compare_words(compare),
        versus=versus,
        attributed_fn=attributed_fn,
        contrast=contrast,
        align=align_words(align),
        steps=steps_words(steps),
        new_tokens=new_tokens,
        step_scores=None if step_scores is None else list(step_scores),
        layers=layers_words(layers),
        groups=groups_words(groups),
        options=options_words(options),
        # Compared methods have one each.
        aggregate=reduction_of(method) if aggregate is None and compare is None else aggregate,
        normalize=normalize,
        subwords=subwords,
        chat_template=RunOptions.chat_template if chat_template is None else chat_template,
    )
    said = raw_unless_said(raw=raw, chat_template=chat_template)
    found = PromptList([examples], "") if isinstance(examples, Prompt) else prompt_list(examples, raw=said)
    check_options(words, found.prompts)
    if versus is not None and not isinstance(examples, Prompt):
        raise InputError("versus is for a single prompt; leave it out")
    kind = AttributionJob if words.compare is None else ComparisonJob
    job = kind(
        words,
        found,
        options if isinstance(options, Mapping) else read_options(options or ()),
        batch_size,
        Reduction(cast(How | None, words.aggregate), normalize, subwords),
        single=isinstance(examples, Prompt),
        said=said,
    )
    return run_job(
        job,
        model,
        tokenizer,
        output,
        workers=workers,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )
