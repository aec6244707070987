"""Interpretations of a prompt file in a run folder: one unit a prompt, one row a state and interpretation prompt."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError, unknown
from interpret.models.opening import model_circumstances, model_identity
from interpret.prompts.prompts import MODEL_TEMPLATE, Prompt
from interpret.prompts.selectors import selector_words
from interpret.records import Interpretation
from interpret.selfie import rows
from interpret.selfie.settings import (
    INTERPRETATION_PROMPTS,
    LAYERS,
    RESID_PRE,
    SAME,
    SLOTS,
    TOKENS,
    Settings,
)
from interpret.selfie.sources import plan_sources
from interpret.selfie.templates import InterpretationPrompt, interpretation_prompt
from interpret.storage.run_folder import Run, RunFolder
from interpret.surgery.words import MODES
from interpret.work.inputs import prompt_list
from interpret.work.loop import Work, fill_folder
from interpret.work.progress import say

INTERPRETING = Work("Interpreting", "interpreted", "prompts")


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Path | str | Sequence[Prompt],
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
    chat_template: str = MODEL_TEMPLATE,
    wrong_vector: bool = Settings.wrong_vector,
    seed: int = Settings.seed,
    batch_size: int | None = Settings.batch_size,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Interpret states into a run folder, as ``interpret selfie`` does; the same call resumes a run that was stopped.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: its fast tokenizer.
        examples: a file of prompts, as examples/examples.json, or prompts, each with a name of its own.
        output: the run folder; it gets ``table.csv`` and ``manifest.json``.
        interpretation_prompts: names of shipped ones, texts with ``{slots}`` in them, or ready ones.
        slots: how many slots ``{slots}`` stands for.
        layers: which states are interpreted, as in ``plan_sources``.
        tokens: which states are interpreted, as in ``plan_sources``.
        site: where the states are taken from: ``resid_pre``, ``attn_out`` or ``mlp_out``.
        insertion_layer: the layer whose input is edited, or ``"same"`` for the source's own.
        replacing_mode: ``normalized`` or ``addition``.
        overlay_strength: share of the inserted state, or its factor.
        new_tokens: longest interpretation, in tokens.
        prompt_output_tokens: longest continuation of the prompt itself, in tokens; 0 for none.
        chat_template: of prompts that are not raw: ``model``, or a text such as ``"[INST] {prompt} [/INST]"``.
        wrong_vector: also score each interpretation under another token's state.
        seed: chooses the wrong states.
        batch_size: interpretations written side by side; chosen from memory if None.
        progress: show a progress bar on stderr.
        identity: what else decides the numbers, as JSON values; a run is only resumed with an equal one.
        circumstances: what else to write into the manifest; it may change when the run is resumed.

    Returns:
        The folder, to be read.

    Raises:
        InputError: if an argument or a prompt is wrong; nothing has been written then.
        RunError: if the folder holds another run, or cannot be written.
        SpecError: if the insertion does not fit the model.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> interpret.selfie.run(model, tokenizer, "examples.json", "runs/mine").to_frame()  # doctest: +SKIP
    """
    prompts = prompt_list(examples)
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
    templates = [_template(tokenizer, one, slots, chat_template) for one in interpretation_prompts]
    sources = plan_sources(
        model, tokenizer, prompts.prompts, layers=layers, tokens=tokens, site=site, chat_template=chat_template
    )
    rows.check_request(model, sources, templates, settings)
    counts = {source.prompt.name: rows.count_rows([source], len(templates)) for source in sources}
    tell = say if progress else _silent

    def written(run: Run) -> Iterator[Interpretation]:
        records = rows.interpretations(model, tokenizer, sources, templates, settings, skip=run.finished, say=tell)
        return write_interpretations(run, records, counts)

    asked = {
        "command": "selfie",
        "interpretation_prompts": [_told(one) for one in interpretation_prompts],
        "slots": slots,
        "layers": selector_words(layers),
        "tokens": selector_words(tokens),
        "site": site,
        "insertion_layer": str(insertion_layer),
        "chat_template": chat_template,
        "examples_sha256": prompts.sha256,
        **_told_settings(settings),
    }
    own = {"examples": str(prompts.path), "batch_size": batch_size}
    return fill_folder(
        INTERPRETING,
        output,
        Interpretation,
        written,
        units=[source.prompt.name for source in sources],
        identity={**model_identity(model), **asked, **(identity or {})},
        circumstances={**model_circumstances(model), **own, **(circumstances or {})},
        count=lambda units: sum(counts[name] for name in units),
        progress=progress,
    )


def write_interpretations(
    run: Run, records: Iterator[Interpretation], counts: Mapping[str, int]
) -> Iterator[Interpretation]:
    """Write prompt by prompt what is pending, and yield every record.

    Args:
        run: open, over the names of the prompts and ``Interpretation``.
        records: of the pending prompts, in order.
        counts: how many of them each prompt has.
    """
    for name in run.pending:
        of_prompt = []
        # Taken by number: waiting for the next prompt's first row would leave this one unsafe.
        for record in islice(records, counts[name]):
            of_prompt.append(record)
            if len(of_prompt) == counts[name]:
                run.write(name, of_prompt)
            yield record


def check_mode(replacing_mode: str) -> str:
    """Return a replacing mode.

    Raises:
        InputError: if there is none of this name.
    """
    if replacing_mode not in MODES:
        raise InputError(unknown("replacing mode", replacing_mode, MODES))
    return replacing_mode


def _insertion_layer(layer: int | str) -> int | Literal["same"]:
    words = str(layer)
    if words != SAME and not words.isdecimal():
        raise InputError(f"insertion layer {layer!r}; give a layer's number, or '{SAME}'")
    return cast(Literal["same"], SAME) if words == SAME else int(words)


def _template(
    tokenizer: PreTrainedTokenizerBase, one: str | InterpretationPrompt, slots: int, chat_template: str
) -> InterpretationPrompt:
    if isinstance(one, InterpretationPrompt):
        return one
    return interpretation_prompt(tokenizer, one, n_slots=slots, chat_template=chat_template)


def _told_settings(settings: Settings) -> dict[str, Any]:
    """Write what decides numbers of the settings, as the command names it; the insertion layer is told elsewhere."""
    return {
        "replacing_mode": settings.mode,
        "overlay_strength": float(settings.strength),
        "new_tokens": settings.new_tokens,
        "prompt_output_tokens": settings.prompt_output_tokens,
        "wrong_vector": settings.wrong_vector,
        "seed": settings.seed,
    }


def _told(one: str | InterpretationPrompt) -> Any:
    """Write an interpretation prompt as a run records it."""
    if isinstance(one, InterpretationPrompt):
        return {"name": one.name, "ids": list(one.ids), "slots": list(one.slots)}
    return one


def _silent(line: str) -> None:
    pass
