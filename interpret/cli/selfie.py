"""``interpret selfie``: interpretations of hidden states by the model itself (SelfIE)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from interpret.cli.console import MOST_SHOWN, out, tell_more
from interpret.cli.options import Loading, Model, WorkerOptions, output_option
from interpret.cli.sources import SubjectPrompts, tell_framing
from interpret.cli.work import tell_counts, tell_rows
from interpret.errors import InterpretError
from interpret.records import Interpretation
from interpret.selfie.settings import INTERPRETATION_PROMPTS, LAYERS, RESID_PRE, SLOTS, TOKENS, Settings
from interpret.storage.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class InterpretOptions:
    """Which hidden states are interpreted, and how the interpretations are generated."""

    interpretation_prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--interpretation-prompt",
            help="'summarize', 'repeat', 'object', 'object_you_said', 'about', 'explain', or a text that contains "
            "{slots}; may be given several times. [default: summarize]",
        ),
    ] = None
    slots: Annotated[int, typer.Option(min=1, help="Number of slots that replace {slots}.")] = SLOTS
    layers: Annotated[
        str,
        typer.Option(
            help="Source layers, as indices of hidden_states (0: the embeddings): '3,7', '0:20:5', '-1', 'all'."
        ),
    ] = LAYERS
    tokens: Annotated[
        str,
        typer.Option(
            help="Source tokens: positions and slices ('0,-1', '2:6'), 'all', 'content' (the prompt without the chat "
            "template), 'last', 'subject', 'subject_last', 'generated' (the first token that the model generates after "
            "the prompt)."
        ),
    ] = TOKENS
    site: Annotated[
        str,
        typer.Option(
            help="Which states are interpreted: 'resid_pre' (residual stream), 'attn_out', 'mixer_out' or 'mlp_out'."
        ),
    ] = RESID_PRE
    insertion_layer: Annotated[
        str, typer.Option(help="Layer into whose input the state is inserted, or 'same' for the source layer.")
    ] = str(Settings.insertion_layer)
    replacing_mode: Annotated[
        str,
        typer.Option(
            help="How the state v is combined with the state h of a slot, with strength a. normalized: a*v + (1-a)*h; "
            "addition: h + a*v."
        ),
    ] = Settings.mode
    overlay_strength: Annotated[float, typer.Option(help="The strength a; 0 to 1 for normalized.")] = Settings.strength
    wrong_vector: Annotated[
        bool, typer.Option(help="Whether each interpretation is also scored with the state of another token inserted.")
    ] = Settings.wrong_vector
    text_control: Annotated[
        bool,
        typer.Option(
            help="Whether each interpretation is also scored with the prompt's own text, up to the source token, in "
            "place of the state."
        ),
    ] = Settings.text_control
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Number of interpretations per batch. [default: as many as fit in memory]")
    ] = Settings.batch_size
    new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an interpretation.")] = (
        Settings.new_tokens
    )
    prompt_output_tokens: Annotated[
        int, typer.Option(min=0, help="Maximum number of tokens of the continuation of the prompt itself.")
    ] = Settings.prompt_output_tokens
    seed: Annotated[
        int, typer.Option(help="Random seed for the choice of the other tokens of --wrong-vector; decoding is greedy.")
    ] = Settings.seed


def selfie_command(
    *,
    prompts: SubjectPrompts,
    output: Annotated[Path | None, output_option("interpretations")] = None,
    model: Model = "demo",
    reading: InterpretOptions,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Let a model describe its hidden states in words: one CSV row per prompt, layer, token and interpretation prompt.

    interpret selfie --prompt "I love eating pizza." --layers 3,7

    Each hidden state is inserted into the slots of an interpretation prompt, such as "What is _ _ _ _ _?", and the text
    that the model then generates is its interpretation (SelfIE, Chen et al. 2024). Control rows contain the text that
    is generated with nothing inserted.

    A run can be stopped at any time; the same command resumes it. Exit code 3: finished, but some prompts could not be
    interpreted.
    """
    from interpret.prompts.chat import has_template
    from interpret.selfie import runs

    # Check everything that can be checked without the model first.
    found = prompts.read()
    options = asdict(reading) | {"interpretation_prompts": reading.interpretation_prompts or INTERPRETATION_PROMPTS}
    runs.check_options(found, **options)
    opened = loading.open(model, workers.asked(loading.imports))
    if opened.tokenizer is not None:
        tell_framing(found, prompts.chat_template, has_template(opened.tokenizer))
    run = runs.run(
        opened.model,
        opened.tokenizer,
        prompts.source(found),
        prompts.folder("runs/interpretations", output, model, reading, loading),
        raw=prompts.raw,
        chat_template=prompts.chat_template,
        **options,
        **opened.recorded,
    )
    _show(run)


def _table(records: Sequence[Interpretation]) -> Table:
    """Return a table of some rows; an interpretation has up to two lines."""
    several = len({record.name for record in records}) > 1
    headings = ["prompt"] * several + ["layer", "token"]
    rest = 54 if several else 43
    width = max(20, out.width - rest)
    table = Table()
    for heading in headings:
        table.add_column(heading, max_width=10, no_wrap=True)
    table.add_column("interpretation", width=width)
    for heading in ("gain", "over text"):
        table.add_column(heading, no_wrap=True, justify="right")
    for record in records:
        where = ["control", ""] if record.layer_idx is None else [str(record.layer_idx), record.current_token]
        gains = ["" if one is None else f"{one:+.2f}" for one in (record.gain_over_nothing, record.gain_over_text)]
        text = shorten(record.interpretation_text, 2 * width - 10, placeholder=" …")
        table.add_row(*map(escape, [record.name] * several + [*where, text, *gains]))
    return table


def _show(run: RunFolder) -> None:
    """Print the first rows and the path of the table.

    Raises:
        InterpretError: if some states were not finite, so that their rows are empty.
        NotAllError: if prompts were dropped.
    """
    first: list[Interpretation] = []
    count = failed = 0
    for records in run.by_unit():
        first += records[: MOST_SHOWN - len(first)]
        count += len(records)
        failed += sum(record.kind == "failed" for record in records)
    out.print(_table(first))
    tell_more(rows=count - len(first))
    out.print("gain: log-probability of the text with the state inserted minus without it, in nats per token")
    out.print("over text: minus that with the prompt's own text, up to the token, in place of the state")
    out.print("table.csv also has the gain over a wrong state, and whether all three are above 0")
    n_dropped = sum(map(len, run.dropped_parts.values()))
    if run.dropped or n_dropped:
        from interpret.selfie.runs import INTERPRETING

        tell_counts(INTERPRETING, run)
    tell_rows(run.folder, count)
    if failed > n_dropped:
        raise InterpretError(
            f"{failed - n_dropped} states contain NaN or infinity, or the model gives NaN for them; their rows are "
            "empty, of kind 'failed'; try --dtype float32"
        )
