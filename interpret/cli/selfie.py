"""``interpret selfie``: prompts in, a run folder of interpretations out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from interpret.cli.console import MOST_SHOWN, out, say
from interpret.cli.options import Loading, Model, Output
from interpret.cli.work import tell_rows
from interpret.errors import InterpretError
from interpret.prompts.prompts import MODEL_TEMPLATE, load_examples
from interpret.records import Interpretation
from interpret.selfie.settings import INTERPRETATION_PROMPTS, LAYERS, RESID_PRE, SLOTS, TOKENS, Settings
from interpret.storage.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class InterpretOptions:
    """Which states are read, and how the model is brought to say what they hold."""

    interpretation_prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--interpretation-prompt",
            help="'summarize', 'repeat', 'about', 'explain', or a text with {slots} in it; may be given several "
            "times. [default: summarize]",
        ),
    ] = None
    slots: Annotated[int, typer.Option(min=1, help="Slots that {slots} stands for.")] = SLOTS
    layers: Annotated[
        str,
        typer.Option(help="Source layers, indices of hidden_states: '3,7', '0:20:5', '-1', 'all'."),
    ] = LAYERS
    tokens: Annotated[
        str,
        typer.Option(
            help="Source tokens: positions and slices, 'all', 'content' (the prompt's own words), 'last', "
            "'subject', 'subject_last'."
        ),
    ] = TOKENS
    site: Annotated[
        str,
        typer.Option(help="'resid_pre' (residual stream), 'attn_out' or 'mlp_out': where the states are taken from."),
    ] = RESID_PRE
    insertion_layer: Annotated[
        str, typer.Option(help="Layer whose input is edited, or 'same' for the source's own.")
    ] = str(Settings.insertion_layer)
    replacing_mode: Annotated[str, typer.Option(help="normalized or addition.")] = Settings.mode
    overlay_strength: Annotated[float, typer.Option(help="Share of the inserted state, or its factor.")] = (
        Settings.strength
    )
    wrong_vector: Annotated[bool, typer.Option(help="Also score each interpretation under another token's state.")] = (
        Settings.wrong_vector
    )
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Interpretations written side by side; from memory if left out.")
    ] = Settings.batch_size
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest interpretation, in tokens.")] = Settings.new_tokens
    prompt_output_tokens: Annotated[int, typer.Option(min=0, help="Longest continuation of the prompt itself.")] = (
        Settings.prompt_output_tokens
    )
    chat_template: Annotated[
        str,
        typer.Option(help="'model' (its own), or a text such as '[INST] {prompt} [/INST]'; not used for raw prompts."),
    ] = MODEL_TEMPLATE
    seed: Annotated[int, typer.Option(help="Chooses the wrong states; decoding is greedy and needs no chance.")] = (
        Settings.seed
    )


def selfie_command(
    *,
    examples: Annotated[
        Path, typer.Option(help="JSON file with the prompts; examples/examples.json shows the format.")
    ],
    output: Output = Path("runs/interpretations"),
    model: Model = "demo",
    reading: InterpretOptions,
    loading: Loading,
) -> None:
    """Let a model say what its hidden states hold: one CSV row a prompt, layer, token and interpretation prompt.

    interpret selfie --examples examples/examples.json --layers 3,7

    Stopped at any time, the same command goes on where it was.
    """
    from transformers import set_seed

    from interpret.prompts.chat import has_template
    from interpret.selfie import runs

    # What needs no model is checked before one is opened.
    runs.check_mode(reading.replacing_mode)
    load_examples(examples)
    set_seed(reading.seed)
    opened = loading.open(model)
    if reading.chat_template == MODEL_TEMPLATE and not has_template(opened.tokenizer):
        say("this model has no chat template: prompts are given to it as they are (see --chat-template)")
    asked = asdict(reading) | {"interpretation_prompts": reading.interpretation_prompts or INTERPRETATION_PROMPTS}
    _show(runs.run(opened.model, opened.tokenizer, examples, output, **asked, **opened.recorded))


def _show(run: RunFolder) -> None:
    """Say where the table is, show its first rows, and fail if rows did."""
    first: list[Interpretation] = []
    count = failed = 0
    for records in run.by_unit():
        first += records[: MOST_SHOWN - len(first)]
        count += len(records)
        failed += sum(record.kind == "failed" for record in records)
    table = Table()
    for heading in ("prompt", "layer", "token"):
        table.add_column(heading, min_width=8, no_wrap=True)
    table.add_column("interpretation", width=max(20, out.width - 55), no_wrap=True)
    table.add_column("gain", no_wrap=True)
    for record in first:
        where = ["control", ""] if record.layer_idx is None else [str(record.layer_idx), record.current_token]
        gain = "" if record.gain_over_nothing is None else f"{record.gain_over_nothing:+.2f}"
        cells = [record.name, *where, " ".join(record.interpretation_text.split()), gain]
        table.add_row(*map(escape, cells))
    out.print(table)
    out.print("gain: how much likelier the text is than with nothing inserted, in nats a token")
    tell_rows(run.folder, count)
    if failed:
        raise InterpretError(
            f"{failed} states were not finite and have empty rows of the kind 'failed'; try --dtype float32"
        )
