"""Interpret a prompt file into a run folder: one unit per prompt, one row per state and interpretation prompt."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError, SpecError, unknown
from interpret.models.opening import model_circumstances, model_identity
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
from interpret.selfie.sources import SOURCE_SITES, plan_sources
from interpret.selfie.templates import InterpretationPrompt, check_words, interpretation_prompt
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.surgery.plan import check_strength
from interpret.surgery.words import MODES
from interpret.work.inputs import Examples, prompt_list
from interpret.work.loop import Work, drop_lacking, fill_folder
from interpret.work.progress import say

NOT_INTERPRETED = "not interpreted"
INTERPRETING = Work("Interpreting", "interpreted", "prompts", "interpretations", (NOT_INTERPRETED,))


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
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
    seed: int = Settings.seed,
    batch_size: int | None = Settings.batch_size,
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
        seed: random seed of the choice of wrong states.
        batch_size: number of interpretations generated together; None to choose it from the device's memory.
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
        seed=seed,
        batch_size=batch_size,
    )
    if isinstance(interpretation_prompts, str):
        interpretation_prompts = [interpretation_prompts]
    if not interpretation_prompts:
        raise InputError("interpretation_prompts is empty; give at least one, such as 'summarize'")
    templates = [_template(tokenizer, one, slots, template) for one in interpretation_prompts]
    lacking = without_subject(prompts.prompts, selector_words(tokens))
    kept = [one for one in prompts.prompts if one.name not in lacking]
    sources = plan_sources(model, tokenizer, kept, layers=layers, tokens=tokens, site=site, chat_template=template)
    rows.check_request(model, sources, templates, settings)
    counts = {source.prompt.name: rows.count_rows([source], len(templates)) for source in sources}
    tell = say if progress else _silent
    dropped_parts: dict[str, dict[str, str]] = {source.prompt.name: {} for source in sources}

    def drop_part(name: str, part: str, reason: str) -> None:
        dropped_parts[name][part] = f"{NOT_INTERPRETED}: {reason}"

    def written(run: Run) -> Iterator[Interpretation]:
        records = rows.interpretations(
            model,
            tokenizer,
            sources,
            templates,
            settings,
            skip=run.finished,
            say=tell,
            parts=run.parts,
            drop=lambda name, reason: run.drop(name, f"{NOT_INTERPRETED}: {reason}"),
            drop_part=drop_part,
        )
        drop_lacking(run, lacking, NOT_INTERPRETED)
        return write_interpretations(run, records, counts, dropped_parts)

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
    own = {"examples": prompts.path, "batch_size": batch_size}
    return fill_folder(
        INTERPRETING,
        output,
        Interpretation,
        written,
        units=[*lacking, *(one.name for one in kept)],
        identity={**model_identity(model), **asked, **(identity or {})},
        circumstances={**model_circumstances(model), **own, **(circumstances or {})},
        count=lambda units: sum(counts.get(name, 0) for name in units),
        progress=progress,
    )


def write_interpretations(
    run: Run,
    records: Iterator[Interpretation],
    counts: Mapping[str, int],
    dropped_parts: Mapping[str, Mapping[str, str]],
) -> Iterator[Interpretation]:
    """Write the records of the pending prompts, prompt by prompt, and yield every record.

    Args:
        run: an open run of ``Interpretation`` records, with the prompts' names as units.
        records: records of the pending prompts, in order.
        counts: number of records of each prompt.
        dropped_parts: prompt -> interpretation that has no text -> reason; complete when the prompt's last record is.
    """
    of_prompt: list[Interpretation] = []
    for record in records:
        of_prompt.append(record)
        # Records are counted: waiting for the next prompt's first record would delay writing this prompt.
        if len(of_prompt) == counts[record.name]:
            run.write(record.name, of_prompt, dropped_parts=dropped_parts[record.name])
            of_prompt = []
        yield record


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
        "seed": settings.seed,
    }


def _recorded(one: str | InterpretationPrompt) -> Any:
    """Return an interpretation prompt as recorded in the manifest."""
    if isinstance(one, InterpretationPrompt):
        return {"name": one.name, "ids": list(one.ids), "slots": list(one.slots)}
    return one


def _silent(line: str) -> None:
    pass
