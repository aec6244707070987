"""``interpret attribute``: prompts in, what each token did to what was written after them out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from interpret.attribution.methods.registry import METHODS
from interpret.attribution.run_options import BATCH_SIZE, RunOptions
from interpret.attribution.steps.functions import FUNCTIONS
from interpret.cli.console import MOST_SHOWN, say, show_table, tell
from interpret.cli.options import Loading, Model
from interpret.cli.work import tell_counts
from interpret.errors import InputError
from interpret.prompts.prompts import Prompt, load_examples
from interpret.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from interpret.attribution.result.attribution import Attribution
    from interpret.records import TokenScore

MOST_TOKENS = 3
"""How many tokens are shown of each step."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is attributed: one prompt, or those of a file."""

    prompt: Annotated[
        str | None, typer.Option(help="One text, read as it is: 'The capital of France is'. Or use --examples.")
    ] = None
    target: Annotated[
        str | None,
        typer.Option(help="What follows --prompt. [default: what the model writes]", show_default=False),
    ] = None
    foil: Annotated[
        str | None,
        typer.Option(help="A wrong answer to hold the target against: why Paris rather than London?"),
    ] = None
    examples: Annotated[
        Path | None,
        typer.Option(help="JSON file with prompts, as examples/examples.json; with 'target' and 'foil' if you like."),
    ] = None

    def prompts(self) -> list[Prompt]:
        """Read the prompts."""
        if (self.prompt is None) == (self.examples is None):
            raise InputError("give --prompt with a text, or --examples with a file of prompts")
        if self.examples is None:
            if not self.prompt:
                raise InputError("--prompt is empty")
            for name, words in (("target", self.target), ("foil", self.foil)):
                if words is not None and not words.strip():
                    raise InputError(f"--{name} is empty; leave it out, or give the words that follow the prompt")
            return [Prompt("prompt", self.prompt, "prompt", raw=True, target=self.target, foil=self.foil)]
        if self.target is not None or self.foil is not None:
            raise InputError('--target and --foil belong to --prompt; in a file they are the keys "target" and "foil"')
        return load_examples(self.examples)


@dataclass(frozen=True, kw_only=True)
class How:
    """How it is attributed, and what becomes of the scores."""

    source_language: Annotated[
        str | None,
        typer.Option(help="Of M2M100 and NLLB: the code of the language of the prompts, such as en or eng_Latn."),
    ] = None
    target_language: Annotated[
        str | None,
        typer.Option(help="Of translation models: the code of the language to write, such as fr or fra_Latn."),
    ] = None
    method: Annotated[
        str,
        typer.Option(help=f"How. {'; '.join(f'{name}: {one.description}' for name, one in METHODS.items())}."),
    ] = RunOptions.method
    attributed_fn: Annotated[
        str | None,
        typer.Option(
            help=f"What is attributed: {', '.join(FUNCTIONS)}; contrast_prob_diff is P(target) - P(foil). "
            "[default: contrast_prob_diff where every prompt has a foil, else probability]",
            show_default=False,
        ),
    ] = None
    contrast: Annotated[
        str, typer.Option(help="Where a foil is read: same_context, after the text itself; own_prefix, after its own.")
    ] = RunOptions.contrast
    align: Annotated[
        str | None,
        typer.Option(help="'0:0,2:1': which token of the target is held against which of the foil, if lengths differ."),
    ] = None
    steps: Annotated[
        str, typer.Option(help="Which tokens after the prompt are attributed: 'first:end', as in a slice; '0:1'.")
    ] = RunOptions.steps
    new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens the model writes where no target is given.")] = (
        RunOptions.new_tokens
    )
    step_scores: Annotated[
        list[str] | None,
        typer.Option("--step-score", help="Also report this function of each step; may be given several times."),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            help="Of layer methods and attention: '3,7', '0:20:5', or activations: 'mlp_out', 'resid_post.3'. "
            "[default: all; of attention the last]",
            show_default=False,
        ),
    ] = None
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="Of the method, as n_steps=20 or baseline=mean; may be given several times."),
    ] = None
    aggregate: Annotated[
        str, typer.Option(help="What becomes of the width: sum (signed), mean, or l2 (without a sign).")
    ] = RunOptions.aggregate
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scores of a step as shares of the sum of their absolute values.")
    ] = False
    subwords: Annotated[bool, typer.Option("--subwords", help="Add up the tokens of each word.")] = False
    chat_template: Annotated[
        str, typer.Option(help="Of --examples that are not raw: 'model' (its own), or a text with {prompt} in it.")
    ] = RunOptions.chat_template


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where results go beside the run folder."""

    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file, for Attribution.load.")
    ] = None
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page to look at in a browser.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of --json and --html.")] = False

    def check(self) -> None:
        """Refuse files that are there, before anything is computed for them."""
        for file in (self.html_file, self.json_file):
            if file is not None and file.exists() and not self.overwrite:
                raise InputError(f"{file} is there already; give --overwrite to replace it, or another name")

    def write(self, found: "Attribution") -> None:
        """Write what was asked for."""
        if self.json_file is not None:
            compress = self.json_file.suffix == ".gz"
            say(f"wrote {found.save(self.json_file, overwrite=self.overwrite, compress=compress)}")
        if self.html_file is not None:
            say(f"wrote {found.show(html=self.html_file, overwrite=self.overwrite)}")


def attribute_command(
    *,
    asked: Asked,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: table.csv, manifest.json. The same command continues it. "
            "[default: runs/attributions for --examples, none for --prompt]",
            show_default=False,
        ),
    ] = None,
    model: Model = "demo",
    how: How,
    files: Files,
    batch_size: Annotated[int, typer.Option(min=1, help="Points or perturbed texts read side by side.")] = BATCH_SIZE,
    loading: Loading,
) -> None:
    """Ask which tokens, or which layers, decide what is written: one CSV row a prompt, written token and token before.

    interpret attribute --prompt "The capital of France is" --target Paris --foil London

    Stopped at any time, the same command goes on where it was. Exit code 3: done, but some prompts could not be
    attributed.
    """
    from interpret.attribution import runs

    # What needs no model is checked before one is opened.
    prompts = asked.prompts()
    runs.check_options(RunOptions(**asdict(how)), prompts)
    files.check()
    opened = loading.open(model)
    n_foils = sum(one.foil is not None for one in prompts)
    if 0 < n_foils < len(prompts) and how.attributed_fn is None:
        say(f"{n_foils} of {len(prompts)} prompts have a foil, which {runs.PLAIN} does not read; {runs.CONTRAST} does")
    with _folder(asked, output) as (folder, kept):
        run = runs.run(
            opened.model,
            opened.tokenizer,
            asked.examples or prompts[0],
            folder,
            **asdict(how),
            batch_size=batch_size,
            **opened.recorded,
        )
        if run.dropped and not kept:
            raise InputError(run.dropped[prompts[0].name])
        if len(run.dropped) < len(run.units):
            found = runs.attribution_of(run)
            files.write(found)
            _show(run, found)
        if kept:
            tell_counts(runs.ATTRIBUTING, run)


@contextmanager
def _folder(asked: Asked, output: Path | None) -> Iterator[tuple[Path, bool]]:
    """Open a folder for the run, and tell whether it is kept: of one prompt only where a folder is given."""
    if output is None and asked.examples is None:
        with TemporaryDirectory() as folder:
            yield Path(folder), False
    else:
        yield output or Path("runs/attributions"), True


def _show(run: RunFolder, found: "Attribution") -> None:
    """Show the first steps, and the tokens with the largest scores; no more than one prompt is held."""
    from interpret.attribution.result.heatmap import title

    info, translated = found.info, found.sequences[0].source_tokens is not None
    shown: list[tuple[str, ...]] = []
    prompts_left, steps_left = len(found.sequences), 0
    for rows in run.by_unit():
        of_steps = [list(of_one) for _, of_one in groupby(rows, key=lambda row: row.step)]
        room = MOST_SHOWN - len(shown)
        shown += [_cells(of_one, translated=translated) for of_one in of_steps[:room]]
        prompts_left, steps_left = prompts_left - 1, len(of_steps) - room
        if steps_left >= 0:
            break
    meaning = f", {info.contrast}" if info.contrast else ""
    header = ("prompt", "token", info.attributed_fn, "what did most to it")
    show_table(f"{title(found)}{meaning}, in: {info.unit}", header, shown)
    more = [_counted(count, noun) for count, noun in ((steps_left, "step"), (prompts_left, "prompt")) if count > 0]
    if more:
        tell(f"and {' and '.join(more)} more")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _cells(rows: "Sequence[TokenScore]", *, translated: bool) -> tuple[str, str, str, str]:
    """Return what is shown of one step: prompt, token, value, and what did most to it."""
    from interpret.attribution.result.heatmap import visible

    most = sorted(rows, key=lambda row: -abs(row.score))[:MOST_TOKENS]
    words = ", ".join(f"{_place(row, translated)} {row.score:+.3g}" for row in most)
    return rows[0].name, visible(rows[0].step_token), f"{rows[0].value:.3g}", words


def _place(row: "TokenScore", translated: bool) -> str:
    """Name a token, the activation at it, and of a translation its side."""
    from interpret.attribution.result.heatmap import visible

    side = ("source " if row.in_prompt else "target ") if translated else ""
    return f"{side}{row.position} {visible(row.token)}" + (f" {row.activation}" if row.activation else "")
