"""Attribute prompts into a run folder: one unit per prompt, one table row per score.

``attributions/`` holds one file per prompt, numbered as in the prompt file and written before the prompt's rows.
``run_files.attribution_of`` reads these files, one at a time, for the page and the JSON file of the whole run.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
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
from interpret.attribution.run_plan import check_options, default_function, plan_run, read_pairs
from interpret.attribution.steps.functions import attributed_function
from interpret.attribution.targets import Alignment, Inputs
from interpret.errors import InputError, ModelError
from interpret.models.opening import Opening
from interpret.prompts.prompts import Prompt, raw_unless_said
from interpret.records import TokenScore
from interpret.storage.outcomes import Dropped, Kept
from interpret.storage.parts import StoredParts, UnitParts
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import Examples, PromptList, prompt_list, read_options
from interpret.work.loop import Work
from interpret.workers.jobs import Analysis, Executor, Finished, Say, Step, Task
from interpret.workers.runs import run_job
from interpret.workers.settings import Workers

NOT_ATTRIBUTED = "not attributed"
ATTRIBUTING = Work("Attributing", "attributed", "prompts", failures=(NOT_ATTRIBUTED,))


@dataclass(frozen=True)
class Reduction:
    """How the scores of a prompt are aggregated; see ``Attribution.aggregate``."""

    how: How = "sum"
    normalize: bool = False
    subwords: bool = False


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
    check_options(words, found.prompts)
    job = AttributionJob(
        words,
        found,
        options if isinstance(options, Mapping) else read_options(options or ()),
        batch_size,
        Reduction(cast(How, aggregate), normalize, subwords),
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


@dataclass(frozen=True)
class AttributionJob:
    """Prompts to attribute, one unit per prompt."""

    words: RunOptions
    """The options, checked."""
    found: PromptList
    """The prompts."""
    options: Mapping[str, Any]
    """Options of the method and the functions."""
    batch_size: int
    """Number of points or masked texts in a batch."""
    reduction: Reduction
    """How the scores are aggregated."""
    single: bool
    """Whether there is a single prompt, which was not in a file; it is checked before the folder is created."""
    said: bool | None
    """Whether prompts that do not say so themselves are raw."""

    @property
    def work(self) -> Work:
        """The words for messages."""
        return ATTRIBUTING

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return TokenScore

    @property
    def others(self) -> Sequence[str]:
        """Names of files and folders besides the table."""
        return (FILES,)

    @property
    def units(self) -> list[str]:
        """The names of the prompts."""
        return [one.name for one in self.found.prompts]

    @property
    def lacking(self) -> Mapping[str, str]:
        """No prompt is dropped before it is tried."""
        return {}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the scores depend on except the model."""
        prompt = self.found.prompts[0] if self.single else None
        raw = {} if self.said is None else {"raw": self.said}
        return {
            "command": "attribute",
            "prompt": prompt and prompt.text,
            "target": prompt and _recorded(prompt.target),
            "foil": prompt and _recorded(prompt.foil),
            **({} if prompt and prompt.raw else {"raw": False} if prompt else raw),
            **asdict(self.words),
            "attributed_fn": attributed_function(self.words.attributed_fn or default_function(self.found.prompts)),
            "examples_sha256": None if prompt else self.found.sha256,
        }

    @property
    def circumstances(self) -> dict[str, Any]:
        """What is recorded besides the identity."""
        return {"examples": self.found.path, "batch_size": self.batch_size}

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> "AttributionAnalysis":
        """Plan the attribution, and check a single prompt.

        Raises:
            InputError: as ``plan_run`` raises, or ``inputs_of`` for a single prompt.
            UnsupportedModelError: as ``plan_run`` raises.
        """
        prompts = self.found.prompts
        foil_asked = self.single and prompts[0].foil is not None
        plan = plan_run(model, tokenizer, self.words, prompts, self.options, self.batch_size, foil_asked)
        asked = questions(tokenizer, prompts, self.words.chat_template)
        analysis = AttributionAnalysis(plan, asked, self.reduction, read_pairs(self.words.align))
        if self.single:
            analysis.inputs_of(asked[0])
        return analysis

    def tasks(self, executor: Executor, wanted: Collection[str]) -> Iterator[Task]:
        """Yield a task per wanted prompt: its number."""
        return (Task((name,), number) for number, name in enumerate(self.units) if name in wanted)

    def count(self, executor: Executor, units: Sequence[str]) -> int:
        """Return the number of steps: one per prompt."""
        return len(units)


def _recorded(continuation: str | Sequence[int] | None) -> str | list[int] | None:
    """Return what follows a prompt as JSON stores it."""
    return continuation if continuation is None or isinstance(continuation, str) else list(continuation)


@dataclass(frozen=True)
class AttributionAnalysis(Analysis):
    """Attributes prompts separately, so that their scores do not depend on where a run was interrupted."""

    plan: Plan
    asked: Sequence[Question]
    reduction: Reduction
    alignment: Alignment | None

    def inputs_of(self, question: Question) -> Inputs:
        """Return the inputs of a prompt.

        Raises:
            InputError: if they do not fit.
        """
        return inputs_of(self.plan, question, self.alignment)

    def do(self, what: int, parts: StoredParts) -> Iterator[Step]:
        """Attribute the prompt of a number; if it cannot be attributed, it is dropped with the reason."""
        question = self.asked[what]
        try:
            found = self._attribution(question, UnitParts(parts, question.name))
            rows = Kept.of(TokenScore, token_scores(question, found), files={file_name(what): compressed(found)})
        except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
            yield Finished(question.name, Dropped(f"{NOT_ATTRIBUTED}: {error}"))
        else:
            yield Finished(question.name, rows)

    def _attribution(self, question: Question, stored: UnitParts) -> Attribution:
        inputs, how = self.inputs_of(question), self.reduction
        with of_one_prompt():
            scores = list(attributions(self.plan, inputs, TextParts(stored, how.how)))
        return Attribution(scores, self.plan.info).aggregate(how.how, normalize=how.normalize, subwords=how.subwords)
