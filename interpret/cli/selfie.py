"""``interpret selfie``: prompts in, a run folder of interpretations out."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase, set_seed

from interpret.cli.console import MOST_SHOWN, choice, out, say
from interpret.cli.options import Loading, Model, Output
from interpret.cli.work import Work, do_units, tell_rows
from interpret.errors import InputError, InterpretError
from interpret.prompts.chat import MODEL_TEMPLATE, has_template
from interpret.prompts.prompts import load_examples
from interpret.records import Interpretation
from interpret.selfie import rows, sources
from interpret.selfie.readings import SAME, Settings
from interpret.selfie.templates import InterpretationPrompt, interpretation_prompt
from interpret.storage import provenance, run_folder
from interpret.surgery.plan import MODES, NORMALIZED

INTERPRETING = Work("Interpreting", "interpreted", "prompts")


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
    slots: Annotated[int, typer.Option(min=1, help="Slots that {slots} stands for.")] = 5
    layers: Annotated[
        str,
        typer.Option(help="Source layers, indices of hidden_states: '3,7', '0:20:5', '-1', 'all'."),
    ] = "3:-1:5"
    tokens: Annotated[
        str,
        typer.Option(
            help="Source tokens: positions and slices, 'all', 'content' (the prompt's own words), 'last', "
            "'subject', 'subject_last'."
        ),
    ] = "content"
    site: Annotated[
        str, typer.Option(help="'resid_pre' (residual stream), 'attn_out' or 'mlp_out': where the states are taken from.")
    ] = sources.RESID_PRE
    insertion_layer: Annotated[
        str, typer.Option(help="Layer whose input is edited, or 'same' for the source's own.")
    ] = "1"
    replacing_mode: Annotated[str, typer.Option(help="normalized or addition.")] = NORMALIZED
    overlay_strength: Annotated[float, typer.Option(help="Share of the inserted state, or its factor.")] = 1.0
    wrong_vector: Annotated[bool, typer.Option(help="Also score each interpretation under another token's state.")] = (
        True
    )
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Interpretations written side by side; from memory if left out.")
    ] = None
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest interpretation, in tokens.")] = 30
    prompt_output_tokens: Annotated[int, typer.Option(min=0, help="Longest continuation of the prompt itself.")] = 30
    chat_template: Annotated[
        str,
        typer.Option(help="'model' (its own), or a text such as '[INST] {prompt} [/INST]'; not used for raw prompts."),
    ] = MODEL_TEMPLATE
    seed: Annotated[int, typer.Option(help="Chooses the wrong states; decoding is greedy and needs no chance.")] = 0

    @property
    def words(self) -> list[str]:
        """The interpretation prompts, by name or as texts."""
        return self.interpretation_prompts or ["summarize"]

    def templates(self, tokenizer: PreTrainedTokenizerBase) -> list[InterpretationPrompt]:
        """Return the interpretation prompts as token ids."""
        return [
            interpretation_prompt(tokenizer, one, n_slots=self.slots, chat_template=self.chat_template)
            for one in self.words
        ]

    def settings(self) -> Settings:
        """Return what the library calls these options."""
        return Settings(
            insertion_layer=_insertion_layer(self.insertion_layer),
            mode=self.replacing_mode,
            strength=self.overlay_strength,
            new_tokens=self.new_tokens,
            prompt_output_tokens=self.prompt_output_tokens,
            wrong_vector=self.wrong_vector,
            seed=self.seed,
            batch_size=self.batch_size,
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
    choice("replacing mode", reading.replacing_mode, MODES)
    prompts = load_examples(examples)
    set_seed(reading.seed)
    opened = loading.open(model)
    lm, tokenizer = opened.model, opened.tokenizer
    if reading.chat_template == MODEL_TEMPLATE and not has_template(tokenizer):
        say("this model has no chat template: prompts are given to it as they are (see --chat-template)")
    templates, settings = reading.templates(tokenizer), reading.settings()
    where = {"layers": reading.layers, "tokens": reading.tokens, "site": reading.site}
    planned = sources.plan_sources(lm, tokenizer, prompts, **where, chat_template=reading.chat_template)
    rows.check_request(lm, planned, templates, settings)
    counts = {source.prompt.name: rows.count_rows([source], len(templates)) for source in planned}

    def written(run: run_folder.Run) -> Iterator[Interpretation]:
        records = rows.interpretations(lm, tokenizer, planned, templates, settings, skip=run.finished, say=say)
        return _write(run, records, counts)

    asked = {"command": "selfie", **asdict(reading), "examples_sha256": provenance.file_sha256(examples)}
    circumstances = {"examples": str(examples), "batch_size": asked.pop("batch_size")}
    do_units(
        INTERPRETING,
        output,
        Interpretation,
        written,
        units=[source.prompt.name for source in planned],
        identity={**opened.identity, **asked, "interpretation_prompts": reading.words},
        circumstances=opened.circumstances | circumstances,
        count=lambda units: sum(counts[name] for name in units),
    )
    _show(output)


def _insertion_layer(words: str) -> Any:
    if words != SAME and not words.isdecimal():
        raise InputError(f"insertion layer {words!r}; give a layer's number, or '{SAME}'")
    return words if words == SAME else int(words)


def _write(
    run: run_folder.Run, records: Iterator[Interpretation], counts: Mapping[str, int]
) -> Iterator[Interpretation]:
    """Write prompt by prompt what is pending, ``counts`` rows each, and yield every record."""
    for name in run.pending:
        rows = []
        # Taken by number: waiting for the next prompt's first row would leave this one unsafe.
        for record in islice(records, counts[name]):
            rows.append(record)
            if len(rows) == counts[name]:
                run.write(name, rows)
            yield record


def _show(folder: Path) -> None:
    """Say where the table is, show its first rows, and fail if rows did."""
    first: list[Interpretation] = []
    count = failed = 0
    for records in run_folder.read_units(folder, Interpretation):
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
    tell_rows(folder, count)
    if failed:
        raise InterpretError(
            f"{failed} states were not finite and have empty rows of the kind 'failed'; try --dtype float32"
        )
