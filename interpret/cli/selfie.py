"""``interpret selfie``: prompts in, a run folder of interpretations out."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from interpret import provenance, runs, selfie, sources
from interpret.chat import MODEL_TEMPLATE, has_template
from interpret.cli.common import Device, DeviceMap, Dtype, Eight, Four, Model, open_model, out, progress, say
from interpret.errors import InputError, InterpretError, unknown
from interpret.facts import load_examples
from interpret.interpretation_prompt import InterpretationPrompt, interpretation_prompt
from interpret.readings import SAME, Settings
from interpret.records import Interpretation
from interpret.spec import MODES, NORMALIZED

FIRST_ROWS = 10


def selfie_command(
    examples: Annotated[
        Path, typer.Option(help="JSON file with the prompts; examples/examples.json shows the format.")
    ],
    output: Annotated[
        Path, typer.Option(help="Run folder: table.csv, manifest.json. The same command continues it.")
    ] = Path("runs/interpretations"),
    model: Model = "demo",
    interpretation_prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--interpretation-prompt",
            help="'summarize', 'repeat', 'about', 'explain', or a text with {slots} in it; may be given several "
            "times. [default: summarize]",
        ),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Slots that {slots} stands for.")] = 5,
    layers: Annotated[
        str,
        typer.Option(help="Source layers, indices of hidden_states: '3,7', '0:20:5', '-1', 'all'."),
    ] = "3:-1:5",
    tokens: Annotated[
        str,
        typer.Option(
            help="Source tokens: positions and slices, 'all', 'content' (the prompt's own words), 'last', "
            "'subject', 'subject_last'."
        ),
    ] = "content",
    site: Annotated[
        str, typer.Option(help="'hidden' (residual stream), 'attn_out' or 'mlp_out': where the states are taken from.")
    ] = sources.HIDDEN,
    insertion_layer: Annotated[
        str, typer.Option(help="Layer whose input is edited, or 'same' for the source's own.")
    ] = "1",
    replacing_mode: Annotated[str, typer.Option(help="normalized or addition.")] = NORMALIZED,
    overlay_strength: Annotated[float, typer.Option(help="Share of the inserted state, or its factor.")] = 1.0,
    wrong_vector: Annotated[
        bool, typer.Option(help="Also score each interpretation under another token's state.")
    ] = True,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Interpretations written side by side; from memory if left out.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest interpretation, in tokens.")] = 30,
    prompt_output_tokens: Annotated[int, typer.Option(min=0, help="Longest continuation of the prompt itself.")] = 30,
    chat_template: Annotated[
        str,
        typer.Option(help="'model' (its own), or a text such as '[INST] {prompt} [/INST]'; not used for raw prompts."),
    ] = MODEL_TEMPLATE,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
    seed: Annotated[int, typer.Option(help="Chooses the wrong states; decoding is greedy and needs no chance.")] = 0,
) -> None:
    """Let a model say what its hidden states hold: one CSV row a prompt, layer, token and interpretation prompt.

    Stopped at any time, the same command goes on where it was.
    """
    if replacing_mode not in MODES:
        raise InputError(unknown("replacing mode", replacing_mode, MODES))
    arguments = {name: value for name, value in locals().items() if name not in ("examples", "output")}
    prompts = load_examples(examples)
    set_seed(seed)
    opened = open_model(model, device, dtype, device_map, load_in_8bit, load_in_4bit)
    lm, tokenizer = opened.model, opened.tokenizer
    if chat_template == MODEL_TEMPLATE and not has_template(tokenizer):
        say("this model has no chat template: prompts are given to it as they are (see --chat-template)")
    words = interpretation_prompts or ["summarize"]
    templates = [interpretation_prompt(tokenizer, one, n_slots=slots, chat_template=chat_template) for one in words]
    planned = sources.plan_sources(
        lm, tokenizer, prompts, layers=layers, tokens=tokens, site=site, chat_template=chat_template
    )
    settings = Settings(
        insertion_layer=_insertion_layer(insertion_layer),
        mode=replacing_mode,
        strength=overlay_strength,
        new_tokens=new_tokens,
        prompt_output_tokens=prompt_output_tokens,
        wrong_vector=wrong_vector,
        seed=seed,
        batch_size=batch_size,
    )
    selfie.check_request(lm, planned, templates, settings)
    for name in ("device", "device_map", "batch_size"):
        del arguments[name]
    circumstances = {**opened.circumstances, "examples": str(examples), "batch_size": batch_size}
    identity = {
        "command": "selfie",
        **arguments,
        **opened.identity,
        "examples_sha256": provenance.file_sha256(examples),
        "interpretation_prompts": words,
    }
    _interpret(lm, tokenizer, planned, templates, settings, output, identity, circumstances)


def _insertion_layer(words: str) -> Any:
    if words != SAME and not words.isdecimal():
        raise InputError(f"insertion layer {words!r}; give a layer's number, or '{SAME}'")
    return words if words == SAME else int(words)


def _interpret(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    planned: list[sources.Source],
    templates: list[InterpretationPrompt],
    settings: Settings,
    folder: Path,
    identity: dict[str, Any],
    circumstances: dict[str, Any],
) -> None:
    """Interpret what is pending, prompt by prompt, into the run folder."""
    units = [source.prompt.name for source in planned]
    with runs.open_run(folder, Interpretation, identity=identity, circumstances=circumstances, units=units) as run:
        pending = [source for source in planned if source.prompt.name in run.pending]
        if len(pending) < len(planned):
            say(f"{len(planned) - len(pending)} of {len(planned)} prompts are already done")
        if pending:
            records = selfie.interpretations(model, tokenizer, planned, templates, settings, skip=run.finished, say=say)
            with progress("Interpreting", records, selfie.count_rows(pending, len(templates))) as counted:
                try:
                    for source in pending:
                        # Taken by number: waiting for the next prompt's first row would leave this one unsafe.
                        rows = islice(counted, selfie.count_rows([source], len(templates)))
                        run.write(source.prompt.name, rows)
                except KeyboardInterrupt:
                    say(f"stopped with {len(run.finished)} of {len(units)} prompts safe; the same command continues")
                    raise typer.Exit(130) from None
    _show(folder)


def _show(folder: Path) -> None:
    """Say where the table is, show its first rows, and fail if rows did."""
    records = runs.read_table(folder, Interpretation)
    table = Table()
    for heading in ("prompt", "layer", "token"):
        table.add_column(heading, min_width=8, no_wrap=True)
    table.add_column("interpretation", width=max(20, out.width - 55), no_wrap=True)
    table.add_column("gain", no_wrap=True)
    for record in records[:FIRST_ROWS]:
        where = ["control", ""] if record.layer_idx is None else [str(record.layer_idx), record.current_token]
        gain = "" if record.gain_over_nothing is None else f"{record.gain_over_nothing:+.2f}"
        cells = [record.name, *where, " ".join(record.interpretation_text.split()), gain]
        table.add_row(*(escape(cell) for cell in cells))
    out.print(table)
    out.print("gain: how much likelier the text is than with nothing inserted, in nats a token")
    out.print(f"{len(records)} rows in {folder / runs.TABLE}", highlight=False, soft_wrap=True)
    failed = sum(record.kind == "failed" for record in records)
    if failed:
        raise InterpretError(
            f"{failed} states were not finite and have empty rows of the kind 'failed'; try --dtype float32"
        )
