"""``interpret attribute``: score how much each token, or layer, contributes to the tokens after a prompt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interpret.attribution.methods.registry import METHODS
from interpret.attribution.run_options import BATCH_SIZE, RunOptions, compare_words
from interpret.attribution.steps.functions import FUNCTIONS
from interpret.cli.console import MOST_SHOWN, counted, say, show_table, tell
from interpret.cli.options import Loading, Model, WorkerOptions, output_option
from interpret.cli.sources import TargetPrompts, tell_framing
from interpret.cli.work import tell_counts
from interpret.errors import InputError
from interpret.finite import descending
from interpret.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from interpret.attribution.result.attribution import Attribution
    from interpret.attribution.result.comparison import Comparison
    from interpret.display import Shown
    from interpret.records import TokenScore

MOST_TOKENS = 3
"""Number of tokens to print for each step."""


@dataclass(frozen=True, kw_only=True)
class AttributionOptions:
    """The method, the attributed value, and the reduction of the scores; see ``RunOptions``."""

    source_language: Annotated[
        str | None,
        typer.Option(help="For M2M100, NLLB and mBART: language code of the prompts, such as en, eng_Latn or en_XX."),
    ] = None
    target_language: Annotated[
        str | None,
        typer.Option(help="For these and Marian: language code of the targets, such as fr, fra_Latn, fr_XX or fra."),
    ] = None
    method: Annotated[
        str,
        typer.Option(
            help=f"Attribution method. {'; '.join(f'{name}: {one.description}' for name, one in METHODS.items())}."
        ),
    ] = RunOptions.method
    compare: Annotated[
        str | None,
        typer.Option(
            help="Compare several methods instead, by the insertion and deletion curves of their scores, such as "
            "'saliency,occlusion,kernel_shap'."
        ),
    ] = None
    versus: Annotated[
        str | None,
        typer.Option(
            help="With --prompt: another prompt that differs in some words. The scores are differences: those of "
            "--prompt minus those of this one, with the same continuation, word by word."
        ),
    ] = None
    attributed_fn: Annotated[
        str | None,
        typer.Option(
            help=f"The function of each output token to attribute: {', '.join(FUNCTIONS)}. contrast_prob_diff is "
            "P(target) - P(foil); answer_log_probability is ln P of all output tokens together. "
            "[default: contrast_prob_diff if every prompt has a foil, else probability]",
            show_default=False,
        ),
    ] = None
    contrast: Annotated[
        str,
        typer.Option(
            help="The context from which the foil's tokens are predicted. same_context: the text with the target; "
            "own_prefix: the text with the foil."
        ),
    ] = RunOptions.contrast
    align: Annotated[
        str | None,
        typer.Option(
            help="Which token of the target is contrasted with which token of the foil, if their numbers differ: "
            "'0:0,2:1'."
        ),
    ] = None
    steps: Annotated[
        str, typer.Option(help="Which tokens after the prompt are attributed, as a slice: '0:1' for the first only.")
    ] = RunOptions.steps
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens to generate for a prompt without a target.")
    ] = RunOptions.new_tokens
    step_scores: Annotated[
        list[str] | None,
        typer.Option(
            "--step-score", help="Also report this function for each output token; may be given several times."
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            help="For layer methods, attention and value_zeroing: layers ('3,7', '0:20:5') or activations ('mlp_out', "
            "'resid_post.3'). [default: all layers; for attention, the last]",
            show_default=False,
        ),
    ] = None
    groups: Annotated[
        list[str] | None,
        typer.Option(
            help="For occlusion, lime and kernel_shap: which tokens are masked together. words, lines, sentences or "
            "paragraphs; a template with fields, such as '{name} lives in {city}'; or a part of the prompt, given "
            "several times."
        ),
    ] = None
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="Option of the method, such as n_steps=20 or baseline=mean; may be given several times."
        ),
    ] = None
    aggregate: Annotated[
        str | None,
        typer.Option(
            help="How the embedding dimension is reduced: sum (signed), mean (signed) or l2 (norm, unsigned); by "
            "default l2 for saliency and sum for all other methods."
        ),
    ] = RunOptions.aggregate
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="Divide the scores of each output token by the sum of their absolute values."),
    ] = False
    subwords: Annotated[bool, typer.Option("--subwords", help="Sum the scores over the tokens of each word.")] = False


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Files to write besides the run folder."""

    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all results to this file; Attribution.load reads it.")
    ] = None
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write an HTML page with a heatmap of the scores.")
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of --json and --html if they exist.")
    ] = False

    def check(self, *, compared: bool) -> None:
        """Refuse to replace existing files, and files that a comparison does not have, before anything is computed."""
        if compared and self.json_file is not None:
            raise InputError("--json holds attributions; a comparison has table.csv and --html")
        for file in (self.html_file, self.json_file):
            if file is not None and file.exists() and not self.overwrite:
                raise InputError(f"{file} already exists; give --overwrite to replace it, or another name")

    def write(self, found: "Attribution") -> None:
        """Write the requested files."""
        if self.json_file is not None:
            compress = self.json_file.suffix == ".gz"
            say(f"wrote {found.save(self.json_file, overwrite=self.overwrite, compress=compress)}")
        self.write_page(found)

    def write_page(self, found: "Shown") -> None:
        """Write the page, if it is requested."""
        if self.html_file is not None:
            say(f"wrote {found.show(html=self.html_file, overwrite=self.overwrite)}")


def attribute_command(
    *,
    prompts: TargetPrompts,
    output: Annotated[Path | None, output_option("attributions")] = None,
    model: Model = "demo",
    settings: AttributionOptions,
    files: FileOptions,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Number of interpolation points or perturbed texts per forward pass.")
    ] = BATCH_SIZE,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Score how much each token, or layer, contributes to the output: one CSV row per output token and earlier token.

    interpret attribute --prompt "The capital of France is" --target Paris --foil London

    Each output token is attributed to all tokens before it. Layer methods score the activations of layers at these
    tokens; their tables have one row per activation.

    A run with a run folder can be stopped at any time; the same command resumes it. Exit code 3: finished, but some
    prompts could not be attributed.
    """
    from interpret.attribution import run_plan, runs
    from interpret.attribution.jobs import ATTRIBUTING
    from interpret.attribution.result.comparison import Comparison
    from interpret.attribution.run_files import attribution_of
    from interpret.prompts.chat import has_template

    # Check everything that can be checked without the model first.
    found = prompts.read()
    run_plan.check_options(RunOptions(**asdict(settings) | {"compare": compare_words(settings.compare)}), found)
    files.check(compared=settings.compare is not None)
    opened = loading.open(model, workers.asked(loading.imports))
    if opened.tokenizer is not None:
        tell_framing(found, prompts.chat_template, has_template(opened.tokenizer))
    n_foils = sum(one.foil is not None for one in found)
    if 0 < n_foils < len(found) and settings.attributed_fn is None:
        say(
            f"only {n_foils} of {len(found)} prompts have a foil; {run_plan.PLAIN} is attributed and foils are ignored "
            f"(see --attributed-fn)"
        )
    run = runs.run(
        opened.model,
        opened.tokenizer,
        prompts.examples or found[0],
        prompts.folder("runs/attributions", output, model, settings, batch_size, loading),
        **asdict(settings),
        raw=prompts.raw,
        chat_template=prompts.chat_template,
        batch_size=batch_size,
        **opened.recorded,
    )
    if prompts.prompt is not None and run.dropped:
        raise InputError(run.dropped[found[0].name])
    if len(run.dropped) < len(run.units):
        if settings.compare is not None:
            compared = Comparison(run.records())
            files.write_page(compared)
            _show_comparison(compared)
        else:
            attributed = attribution_of(run)
            files.write(attributed)
            _show(run, attributed)
    tell_counts(ATTRIBUTING, run)


def _show_comparison(found: "Comparison") -> None:
    """Print the mean areas of the methods with their intervals."""
    rows = []
    for row in found.summary().itertuples():
        areas = [getattr(row, side) for side in ("insertion", "deletion")]
        ends = [(getattr(row, f"{side}_low"), getattr(row, f"{side}_high")) for side in ("insertion", "deletion")]
        # A single prompt has no interval.
        words = [f" ({low:.4g} to {high:.4g})" if row.n > 1 else "" for low, high in ends]
        rows.append((row.method, *(f"{area:.4g}{interval}" for area, interval in zip(areas, words, strict=True))))
    n = len({row.name for row in found})
    header = ("method", "insertion area, higher is better", "deletion area, lower is better")
    show_table(f"Attribution methods on {n} prompt{'s'[: n != 1]}; unit: {found[0].attributed_fn}", header, rows)


def _show(run: RunFolder, found: "Attribution") -> None:
    """Print the first steps with their top attributions; only one prompt is in memory at a time."""
    from interpret.attribution.result.show import title

    info, with_source = found.info, found.sequences[0].source_tokens is not None
    shown: list[tuple[str, ...]] = []
    prompts_left, steps_left = len(found.sequences), 0
    for rows in run.by_unit():
        of_steps = [list(of_one) for _, of_one in groupby(rows, key=lambda row: row.step)]
        room = MOST_SHOWN - len(shown)
        shown += [_cells(of_one, with_source=with_source) for of_one in of_steps[:room]]
        prompts_left, steps_left = prompts_left - 1, len(of_steps) - room
        if steps_left >= 0:
            break
    meaning = f", {info.contrast}" if info.contrast else ""
    header = ("prompt", "token", info.attributed_fn, "top attributions")
    show_table(f"{title(found)}{meaning}; unit: {info.unit}", header, shown)
    more = [counted(count, noun) for count, noun in ((steps_left, "steps"), (prompts_left, "prompts")) if count > 0]
    if more:
        tell(f"and {' and '.join(more)}")


def _cells(rows: "Sequence[TokenScore]", *, with_source: bool) -> tuple[str, str, str, str]:
    """Return the table cells of one step: prompt, token, value, and top attributions."""
    from interpret.display.heatmaps import visible

    most = sorted(rows, key=lambda row: descending(abs(row.score)))[:MOST_TOKENS]
    words = ", ".join(f"{_place(row, with_source)} {row.score:+.3g}" for row in most)
    return rows[0].name, visible(rows[0].step_token), f"{rows[0].value:.3g}", words


def _place(row: "TokenScore", with_source: bool) -> str:
    """Return position, text and activation of a token; with a source, also whether it is in source or target."""
    from interpret.display.heatmaps import visible

    side = ("source " if row.in_prompt else "target ") if with_source else ""
    return f"{side}{row.position} {visible(row.token)}" + (f" {row.activation}" if row.activation else "")
