"""Interpret a prompt file into a run folder: one unit per prompt, one row per state and interpretation prompt."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.errors import InputError, SpecError, unknown
from interpret.models.opening import Opening
from interpret.prompts.prompts import MODEL_TEMPLATE, Prompt, raw_unless_said
from interpret.prompts.selectors import check_selector, selector_words
from interpret.prompts.tokens import check_tokens, without_subject
from interpret.records import Interpretation
from interpret.selfie import rows
from interpret.selfie.settings import (
    GENERATED,
    INTERPRETATION_PROMPTS,
    LAYERS,
    RESID_PRE,
    SAME,
    SLOTS,
    TOKENS,
    Settings,
)
from interpret.selfie.sources import SOURCE_SITES, Source, plan_sources
from interpret.selfie.templates import InterpretationPrompt, check_words, interpretation_prompt
from interpret.storage.outcomes import Dropped, Kept
from interpret.storage.parts import StoredParts
from interpret.storage.run_folder import RunFolder
from interpret.surgery.plan import check_strength
from interpret.surgery.words import MODES
from interpret.work.inputs import Examples, prompt_list
from interpret.work.loop import Work
from interpret.workers.jobs import Analysis, Executor, Finished, Say, Settled, Step, Task
from interpret.workers.prompt_job import PromptJob
from interpret.workers.runs import run_job
from interpret.workers.settings import Workers

NOT_INTERPRETED = "not interpreted"
INTERPRETING = Work("Interpreting", "interpreted", "prompts", "interpretations", (NOT_INTERPRETED,))


@unwrapping
def run(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: Examples,
    output: Path | str,
    *,
    interpretation_prompts: str | Sequence[str | InterpretationPrompt] = INTERPRETATION_PROMPTS,
    slots: int = SLOTS,
    layers: str | Sequence[int] = LAYERS,
    tokens: str | Sequence[int] = TOKENS,
    site: str = RESID_PRE,
    insertion_layer: int | str = Settings.insertion_layer,
    replacing_mode: str = Settings.mode,
    overlay_strength: float = Settings.strength,
    new_tokens: int = Settings.new_tokens,
    prompt_output_tokens: int = Settings.prompt_output_tokens,
    raw: bool = False,
    chat_template: str | None = None,
    wrong_vector: bool = Settings.wrong_vector,
    text_control: bool = Settings.text_control,
    seed: int = Settings.seed,
    batch_size: int | None = Settings.batch_size,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Interpret states into a run folder, as ``interpret selfie`` does; the same call resumes a stopped run.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: path of a prompt file such as examples/examples.json; prompts with unique names; or rows as dicts,
            such as a Hugging Face data set.
        output: the run folder; ``table.csv`` and ``manifest.json`` are written into it.
        interpretation_prompts: names of shipped interpretation prompts, texts that contain ``{slots}``, or
            ``InterpretationPrompt`` objects.
        slots: number of slots that replace ``{slots}``.
        layers: layers of the states to interpret, as in ``plan_sources``.
        tokens: tokens of the states to interpret, as in ``plan_sources``.
        site: where the states are taken from: ``resid_pre``, ``attn_out`` or ``mlp_out``.
        insertion_layer: the layer whose input is edited, or ``"same"`` for the layer that each state comes from.
        replacing_mode: ``normalized`` or ``addition``, as in ``insert_info``.
        overlay_strength: share of the inserted state for ``normalized``, its factor for ``addition``.
        new_tokens: maximum length of an interpretation, in tokens.
        prompt_output_tokens: maximum length of the continuation of the prompt itself, in tokens; 0 for none.
        raw: read prompts that do not say ``raw`` themselves as they are.
        chat_template: make these prompts the user's message of a chat: ``model`` for the model's own template, or a
            text such as ``"[INST] {prompt} [/INST]"``. With neither: see ``Prompt.raw``, and the model's own template.
        wrong_vector: also score each interpretation with another token's state inserted.
        text_control: also score each interpretation with the prompt's own text in place of the slots, up to the
            interpreted token, and no state inserted.
        seed: random seed of the choice of wrong states.
        batch_size: number of interpretations generated together; None to choose it from the device's memory.
        workers: number of processes that open the model and share the prompts, or ``Workers``. They open it as
            ``interpret.load`` has opened it; it may also be an ``Opening``, with None for ``tokenizer``.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values; a run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may change when the run is resumed.

    Returns:
        The run folder, for reading the results.

    Raises:
        InputError: if an argument or a prompt is invalid; in this case nothing has been written.
        RunError: if the folder holds another run, or cannot be written.
        SpecError: if the insertion does not fit the model.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> interpret.selfie.run(model, tokenizer, "examples.json", "runs/mine").to_frame()  # doctest: +SKIP
    """
    said = raw_unless_said(raw=raw, chat_template=chat_template)
    template = MODEL_TEMPLATE if chat_template is None else chat_template
    prompts = prompt_list(examples, raw=said)
    settings = Settings(
        insertion_layer=_insertion_layer(insertion_layer),
        mode=check_mode(replacing_mode),
        strength=overlay_strength,
        new_tokens=new_tokens,
        prompt_output_tokens=prompt_output_tokens,
        wrong_vector=wrong_vector,
        text_control=text_control,
        seed=seed,
        batch_size=batch_size,
    )
    if isinstance(interpretation_prompts, str):
        interpretation_prompts = [interpretation_prompts]
    if not interpretation_prompts:
        raise InputError("interpretation_prompts is empty; give at least one, such as 'summarize'")
    asked = {
        "command": "selfie",
        "interpretation_prompts": [_recorded(one) for one in interpretation_prompts],
        "slots": slots,
        "layers": selector_words(layers),
        "tokens": selector_words(tokens),
        "site": site,
        "insertion_layer": str(insertion_layer),
        "chat_template": template,
        **({} if said is None else {"raw": said}),
        "examples_sha256": prompts.sha256,
        **_recorded_settings(settings),
    }
    job = SelfieJob(prompts, tokens, list(interpretation_prompts), slots, layers, site, template, settings, asked)
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
class SelfieJob(PromptJob):
    """Prompts whose states are interpreted, one unit per prompt."""

    interpretation_prompts: Sequence[str | InterpretationPrompt]
    slots: int
    """Number of slots that replace ``{slots}``."""
    layers: str | Sequence[int]
    """Layers of the states to interpret."""
    site: str
    """Where the states are taken from."""
    chat_template: str
    """Chat template of prompts that are not raw."""
    settings: Settings
    identity: Mapping[str, Any]
    """Everything the rows depend on except the model."""

    @property
    def work(self) -> Work:
        """The words for messages."""
        return INTERPRETING

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return Interpretation

    @property
    def circumstances(self) -> dict[str, Any]:
        """What is recorded besides the identity."""
        return {"examples": self.found.path, "batch_size": self.settings.batch_size}

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> "SelfieAnalysis":
        """Find the states to interpret, and check the request.

        Raises:
            InputError: if an argument or a prompt is invalid.
            SpecError: if the insertion does not fit the model.
            UnsupportedModelError: if the model is not of a supported family.
        """
        templates = [_template(tokenizer, one, self.slots, self.chat_template) for one in self.interpretation_prompts]
        sources = plan_sources(
            model,
            tokenizer,
            self.kept,
            layers=self.layers,
            tokens=self.tokens,
            site=self.site,
            chat_template=self.chat_template,
        )
        rows.check_request(model, tokenizer, sources, templates, self.settings)
        return SelfieAnalysis(rows.Interpreter(model, tokenizer, templates, self.settings), sources, say)

    def tasks(self, executor: Executor, wanted: Collection[str]) -> Iterator[Task]:
        """Yield a task per group of prompts that share batches, if one of them is wanted."""
        settled: SettledGroups = executor.settled()
        for group in settled.groups:
            if units := tuple(name for name in group if name in wanted):
                yield Task(units, _Group(group, units, settled.batch_size))

    def count(self, executor: Executor, units: Sequence[str]) -> int:
        """Return the number of steps: one per record, and one per prompt that is dropped."""
        counts = executor.settled().counts
        return sum(counts.get(name, 1) for name in units)


@dataclass(frozen=True)
class SettledGroups(Settled):
    """How prompts share batches, which is decided once, because it depends on the memory of the device."""

    batch_size: int
    """Number of interpretations generated together."""
    groups: Sequence[tuple[str, ...]]
    """Names of the prompts that share batches."""
    counts: Mapping[str, int]
    """Number of records of each prompt."""

    @property
    def recorded(self) -> dict[str, Any]:
        """The size of batches."""
        return {"batch_size": self.batch_size}


@dataclass(frozen=True)
class _Group:
    """Prompts that share batches."""

    names: tuple[str, ...]
    """All of them."""
    wanted: tuple[str, ...]
    """Those whose records are wanted."""
    batch_size: int


class SelfieAnalysis(Analysis):
    """Interprets the states of groups of prompts."""

    def __init__(self, interpreter: rows.Interpreter, sources: Sequence[Source], say: Say) -> None:
        self._interpreter, self._say = interpreter, say
        self._sources = {source.prompt.name: source for source in sources}

    def settle(self) -> SettledGroups:
        """Return the size of batches, and the groups of prompts that share them."""
        size, n_templates = self._interpreter.batch_size, len(self._interpreter.templates)
        groups = [
            tuple(source.prompt.name for source in group)
            for group in rows.prompt_groups(list(self._sources.values()), size)
        ]
        counts = {name: rows.count_rows([source], n_templates) for name, source in self._sources.items()}
        return SettledGroups(size, groups, counts)

    def do(self, what: _Group, parts: StoredParts) -> Iterator[Step]:
        """Interpret the states of some prompts, and yield a step per record; what does not fit in memory is dropped."""
        dropped: list[Finished] = []
        dropped_parts: dict[str, dict[str, str]] = {name: {} for name in what.wanted}

        def drop(name: str, reason: str) -> None:
            dropped.append(Finished(name, Dropped(f"{NOT_INTERPRETED}: {reason}")))

        def drop_part(name: str, part: str, reason: str) -> None:
            dropped_parts[name][part] = f"{NOT_INTERPRETED}: {reason}"

        group, skip = [self._sources[name] for name in what.names], set(what.names) - set(what.wanted)
        of_prompt: list[Interpretation] = []
        records = self._interpreter.read(group, what.batch_size, skip, self._say, parts, drop, drop_part)
        for record in records:
            yield from _emptied(dropped)
            of_prompt.append(record)
            # Records are counted: waiting for the next prompt's first record would delay writing this prompt.
            if len(of_prompt) == rows.count_rows([self._sources[record.name]], len(self._interpreter.templates)):
                found = Kept.of(Interpretation, of_prompt, dropped_parts=dropped_parts[record.name])
                yield Finished(record.name, found)
                of_prompt = []
            else:
                yield None
        yield from _emptied(dropped)


def _emptied(steps: list[Finished]) -> Iterator[Finished]:
    """Take out all elements of a list, and yield them in order."""
    while steps:
        yield steps.pop(0)


def check_options(
    prompts: Sequence[Prompt],
    *,
    interpretation_prompts: Sequence[str],
    layers: str,
    tokens: str,
    site: str,
    insertion_layer: int | str,
    replacing_mode: str,
    overlay_strength: float,
    **others: object,
) -> None:
    """Check the options of a run that can be checked without a model; the arguments are those of ``run``.

    Raises:
        InputError: if an option is wrong, or tokens of the subject are selected and no prompt has one.
        SpecError: if the strength does not fit the mode.
    """
    check_mode(replacing_mode)
    _insertion_layer(insertion_layer)
    try:
        check_strength(replacing_mode, overlay_strength)
    except SpecError as error:
        raise SpecError(f"insertion: {error}") from None
    check_selector("layer", layers)
    check_tokens(tokens, [GENERATED])
    if site not in SOURCE_SITES:
        raise InputError(unknown("site", site, SOURCE_SITES))
    for words in interpretation_prompts:
        check_words(words)
    without_subject(prompts, tokens)


def check_mode(replacing_mode: str) -> str:
    """Check a replacing mode, and return it.

    Raises:
        InputError: if the mode is unknown.
    """
    if replacing_mode not in MODES:
        raise InputError(unknown("replacing mode", replacing_mode, MODES))
    return replacing_mode


def _insertion_layer(layer: int | str) -> int | Literal["same"]:
    words = str(layer)
    if words != SAME and not words.isdecimal():
        raise InputError(f"insertion layer is {layer!r}; give the index of a layer, or '{SAME}'")
    return cast(Literal["same"], SAME) if words == SAME else int(words)


def _template(
    tokenizer: PreTrainedTokenizerBase, one: str | InterpretationPrompt, slots: int, chat_template: str
) -> InterpretationPrompt:
    if isinstance(one, InterpretationPrompt):
        return one
    return interpretation_prompt(tokenizer, one, n_slots=slots, chat_template=chat_template)


def _recorded_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that determine the numbers, by the command's names, without the insertion layer."""
    return {
        "replacing_mode": settings.mode,
        "overlay_strength": float(settings.strength),
        "new_tokens": settings.new_tokens,
        "prompt_output_tokens": settings.prompt_output_tokens,
        "wrong_vector": settings.wrong_vector,
        "text_control": settings.text_control,
        "seed": settings.seed,
    }


def _recorded(one: str | InterpretationPrompt) -> Any:
    """Return an interpretation prompt as recorded in the manifest."""
    if isinstance(one, InterpretationPrompt):
        return {"name": one.name, "ids": list(one.ids), "slots": list(one.slots)}
    return one
